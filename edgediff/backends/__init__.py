"""Where a model can run: one file a backend, one signature (`diffusion.denoiser.Denoiser`)."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Literal

from edgediff.artifacts import installed_version

DISTRIBUTIONS = {
    "pytorch": ("torch", "torch"),
    "onnxruntime": ("onnxruntime", "onnxruntime", "onnxruntime-gpu"),
    "tensorrt_rtx": ("tensorrt_rtx", "tensorrt-rtx-cu12", "tensorrt-rtx"),
    "tensorrt": ("tensorrt", "tensorrt"),
    "openvino": ("openvino", "openvino"),
}
"""Backend → module to import, and the distributions that may carry it."""

EXTRAS = {"tensorrt_rtx": "rtx", "tensorrt": "trt", "openvino": "openvino"}


@dataclass(frozen=True)
class Availability:
    """What a backend can do on this machine, and why it cannot do the rest."""

    version: str | None
    can_build: bool
    can_run: bool
    why_not: str = ""


def has_gpu() -> bool:
    """Return whether PyTorch sees an NVIDIA GPU."""
    import torch

    return torch.cuda.is_available()


def gpu_name() -> str | None:
    """Return what the NVIDIA GPU is called that models run on; None where there is none."""
    import torch

    return torch.cuda.get_device_name() if has_gpu() else None


def best_device() -> Literal["cpu", "cuda"]:
    """Return where models are trained and images are drawn: the GPU where there is one."""
    return "cuda" if has_gpu() else "cpu"


def usable_builders() -> list[str]:
    """Return the engine builders that can build here; the one that needs no GPU comes first."""
    return [name for name in ("tensorrt_rtx", "tensorrt") if _availability(name).can_build]


def availability() -> dict[str, Availability]:
    """Return what every backend can do here; imports none of them."""
    return {name: _availability(name) for name in DISTRIBUTIONS}


def _availability(name: str) -> Availability:
    module, *distributions = DISTRIBUTIONS[name]
    if importlib.util.find_spec(module) is None:
        hint = f": `pip install 'edgediff[{EXTRAS[name]}]'`" if name in EXTRAS else ""
        return Availability(None, False, False, f"not installed{hint}")
    version = next(filter(None, map(installed_version, distributions)), "unknown")
    if name == "openvino":
        return Availability(version, False, False, "installed, and not used by edgediff yet")
    if name in ("tensorrt_rtx", "tensorrt"):
        if has_gpu():
            return Availability(version, True, True)
        ahead_of_time = name == "tensorrt_rtx"
        return Availability(version, ahead_of_time, False, "no NVIDIA GPU")
    return Availability(version, True, True)
