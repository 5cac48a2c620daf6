"""The verb `doctor`: what this machine has, and which backends can build and run on it."""

from __future__ import annotations

import platform
import shutil
from pathlib import Path

import psutil
from pydantic import BaseModel

from edgediff import __version__
from edgediff.artifacts import cpu_name, installed_version
from edgediff.backends import Availability, availability
from edgediff.output import Output

PACKAGES = ("torch", "diffusers", "torch-pruning", "safetensors", "onnx", "onnxscript", "onnxruntime")
FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8", "neon", "asimd")
ENOUGH_MEMORY_GIB, ENOUGH_DISK_GIB = 2.0, 1.0


class Health(BaseModel):
    """Everything a question about a failing run starts with."""

    edgediff: str
    python: str
    system: str
    packages: dict[str, str | None]
    cpu: str
    cores: int
    cpu_features: list[str]
    memory_gib: float
    memory_free_gib: float
    disk_free_gib: float  # where the current folder is
    gpus: list[str]
    backends: dict[str, Availability]
    problems: list[str]  # each with what to do about it


def doctor(output: Output) -> Health:
    """Look at the machine and say what was found."""
    memory = psutil.virtual_memory()
    health = Health(
        edgediff=__version__,
        python=platform.python_version(),
        system=platform.platform(),
        packages={name: installed_version(name) for name in PACKAGES},
        cpu=cpu_name(),
        cores=len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else psutil.cpu_count(),
        cpu_features=_cpu_features(),
        memory_gib=memory.total / 2**30,
        memory_free_gib=memory.available / 2**30,
        disk_free_gib=shutil.disk_usage(Path.cwd()).free / 2**30,
        gpus=_gpus(),
        backends=availability(),
        problems=[],
    )
    health.problems = _problems(health)
    _show(health, output)
    return health


def _problems(health: Health) -> list[str]:
    problems = [
        f"{name} is not installed: `pip install {name}`" for name, version in health.packages.items() if not version
    ]
    if health.memory_free_gib < ENOUGH_MEMORY_GIB:
        problems.append(
            f"only {health.memory_free_gib:.1f} GiB of memory are free: close something, or use smaller batches"
        )
    if health.disk_free_gib < ENOUGH_DISK_GIB:
        problems.append(f"only {health.disk_free_gib:.1f} GiB of disk are free here: runs need room for checkpoints")
    return problems


def _show(health: Health, output: Output) -> None:
    output.table(
        "machine",
        ["", ""],
        [
            ["edgediff", f"{health.edgediff}, Python {health.python}, {health.system}"],
            ["packages", ", ".join(f"{name} {version or 'missing'}" for name, version in health.packages.items())],
            [
                "processor",
                f"{health.cpu}, {health.cores} cores; {', '.join(health.cpu_features) or 'features unknown'}",
            ],
            ["memory", f"{health.memory_free_gib:.1f} of {health.memory_gib:.1f} GiB free"],
            ["disk", f"{health.disk_free_gib:.1f} GiB free here"],
            ["GPU", ", ".join(health.gpus) or "no NVIDIA GPU"],
        ],
    )
    output.table(
        "backends",
        ["", "version", "builds here", "runs here", "why not"],
        [
            [
                name,
                backend.version or "–",
                "yes" if backend.can_build else "no",
                "yes" if backend.can_run else "no",
                backend.why_not,
            ]
            for name, backend in health.backends.items()
        ],
    )
    for problem in health.problems:
        output.say(f"problem: {problem}")


def _cpu_features() -> list[str]:
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    present = set(flags.split())
    return [name for name in FEATURES if name in present]


def _gpus() -> list[str]:
    import torch

    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
