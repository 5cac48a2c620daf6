"""The verb `benchmark`: teacher, pruned model and student timed side by side on every backend that runs here.

Rounds visit every role once, in an order that rotates, so that whatever disturbs the machine disturbs all alike; the
speedup is the median of the ratios within rounds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from edgediff import model_folder, teacher
from edgediff.artifacts import content_hash, cpu_name, read_result, result_up_to_date, write_result
from edgediff.backends import has_gpu
from edgediff.backends.memory import peak_memory_mib
from edgediff.backends.onnxruntime import CUDA_PROVIDER, OnnxRuntimeDenoiser, available_providers
from edgediff.backends.pytorch import PyTorchDenoiser
from edgediff.backends.tensorrt import EngineDenoiser
from edgediff.diffusion.denoiser import Denoiser
from edgediff.errors import BadInputError, StageFailedError
from edgediff.metrics.cost import macs, parameter_bytes, parameter_count
from edgediff.metrics.percentiles import latency_summary
from edgediff.model_folder import Loaded
from edgediff.output import Output, Progress, number
from edgediff.recipe import BenchmarkConfig, Recipe
from edgediff.results import Cost, Latency, LatencyProfile, LatencyRow
from edgediff.run import ROLES, Role, Run

Key = TypeVar("Key")
VERBS: dict[Role, str] = {"pruned": "prune", "student": "distill"}


@dataclass(frozen=True)
class Candidates:
    """The denoisers of one backend, by role, and where each one's file is (for the memory measurement)."""

    backend: str
    device: str
    denoisers: Mapping[Role, Denoiser]
    paths: Mapping[Role, Path]


def benchmark(run: Run, recipe: Recipe, output: Output) -> Latency:
    """Write `run.latency`: one row for every role, backend and batch size; rows that cannot run here say why.

    Raises: BadInputError when a model or its export is missing; StageFailedError for a model whose output is not
    finite.
    """
    folders: dict[Role, Path] = {
        "teacher": teacher.resolve(recipe.teacher).folder,
        "pruned": run.pruned,
        "student": run.student,
    }
    for role in ROLES:
        if not folders[role].is_dir():
            raise BadInputError(f"nothing to time: `{folders[role]}`", f"run `edgediff {VERBS[role]} {run.path}` first")
        if not (run.onnx(role) / "manifest.json").is_file():
            raise BadInputError(f"nothing to time: `{run.onnx(role)}`", f"run `edgediff export {run.path}` first")
    loaded = {role: model_folder.load(folders[role]) for role in ROLES}
    steps = recipe.evaluate.num_inference_steps
    config = {
        "benchmark": recipe.benchmark.model_dump(mode="json"),
        "num_inference_steps": steps,
        "backends": list(recipe.build.backends),
        "device": cpu_name(),
        "gpu": has_gpu(),
    }
    inputs: dict[str, str] = {
        **{role: loaded[role].sha256 for role in ROLES},
        **{f"onnx/{role}": content_hash(run.onnx(role)) for role in ROLES},
    }
    if result_up_to_date(run.latency, stage="benchmark", config=config, inputs=inputs):
        latency = Latency.model_validate(read_result(run.latency))
        output.stage("benchmark", "up to date")
        show(latency, output)
        return latency

    settings = recipe.benchmark
    output.stage("benchmark", f"{settings.iterations} rounds, {settings.threads} thread(s)")
    rows: list[LatencyRow] = []
    with _threads(settings.threads):
        for candidates in _candidates(run, folders, loaded, settings):
            for batch_size in settings.batch_sizes:
                what = f"{candidates.backend} {candidates.device}, batch {batch_size}"
                rounds = settings.iterations + settings.warmup_iterations
                with output.progress(what, len(candidates.denoisers) * (rounds + 1)) as progress:
                    rows += _timed(candidates, loaded, batch_size, settings, steps, progress)
    rows += _engine_rows(run, recipe, loaded["student"], steps)
    latency = Latency(
        profile=LatencyProfile(
            device=cpu_name(),
            threads=settings.threads,
            warmup_iterations=settings.warmup_iterations,
            iterations=settings.iterations,
            num_inference_steps=steps,
            sample_shape=loaded["teacher"].sample_shape,
        ),
        costs={role: _cost(loaded[role]) for role in ROLES},
        rows=rows,
    )
    write_result(run.latency, latency.model_dump(mode="json"), stage="benchmark", config=config, inputs=inputs)
    show(latency, output)
    return latency


def rotated(keys: list[Key], round_index: int) -> list[Key]:
    """Return `keys` in the order of a round: each of them goes first equally often."""
    first = round_index % len(keys)
    return keys[first:] + keys[:first]


def time_side_by_side(
    denoisers: Mapping[Role, Denoiser], inputs: Mapping[str, Tensor], config: BenchmarkConfig, progress: Progress
) -> dict[Role, list[float]]:
    """Return the seconds of one forward, per role and round; the same position in every list is the same round.

    Raises: StageFailedError when a model's output is not finite.
    """
    roles = list(denoisers)
    seconds: dict[Role, list[float]] = {role: [] for role in roles}
    for index in range(config.warmup_iterations + config.iterations):
        for role in rotated(roles, index):
            began = time.perf_counter()
            prediction = denoisers[role](**inputs)  # returns on the device of its CPU inputs, so it has finished
            took = time.perf_counter() - began
            progress.advance()
            if index >= config.warmup_iterations:
                seconds[role].append(took)
            elif not bool(torch.isfinite(prediction).all()):
                raise StageFailedError(f"{role} on {denoisers[role].backend} predicts values that are not finite")
    return seconds


def show(latency: Latency, output: Output) -> None:
    """Show the latency table for people."""
    measured = [row for row in latency.rows if row.status == "measured"]
    rows = [
        [
            row.role,
            row.backend if row.device == "cpu" else f"{row.backend} {row.device}",
            str(row.batch_size),
            number(row.step_p50_ms),
            number(row.step_p99_ms),
            number(row.image_ms),
            number(row.peak_memory_mib),
            number(row.speedup),
        ]
        for row in measured
    ]
    profile = latency.profile
    output.table(
        f"latency on {profile.device}, {profile.threads} thread(s); an image takes {profile.num_inference_steps} steps",
        ["", "backend", "batch", "step ms", "p99", "image ms", "MiB", "speedup"],
        rows,
    )
    for row in latency.rows:
        if row not in measured:
            output.say(f"not run: {row.role} on {row.backend}, batch {row.batch_size}: {row.reason}")


def _candidates(
    run: Run, folders: Mapping[Role, Path], loaded: Mapping[Role, Loaded], config: BenchmarkConfig
) -> Iterator[Candidates]:
    """Yield the backends one after the other, so that only one backend's models are in memory beside the CPU's."""
    graphs = {role: run.onnx(role) / "model.onnx" for role in ROLES}
    eager = {role: PyTorchDenoiser(loaded[role].model, loaded[role].family) for role in ROLES}
    yield Candidates("pytorch", "cpu", eager, folders)
    sessions = {role: OnnxRuntimeDenoiser(graphs[role], threads=config.threads) for role in ROLES}
    yield Candidates("onnxruntime", "cpu", sessions, graphs)
    if has_gpu():
        on_gpu = {role: PyTorchDenoiser(loaded[role].model, loaded[role].family, "cuda") for role in ROLES}
        yield Candidates("pytorch", "cuda", on_gpu, {})
        if CUDA_PROVIDER in available_providers():
            on_gpu_too = {role: OnnxRuntimeDenoiser(graphs[role], provider=CUDA_PROVIDER) for role in ROLES}
            yield Candidates("onnxruntime", "cuda", on_gpu_too, {})


def _timed(
    candidates: Candidates,
    loaded: Mapping[Role, Loaded],
    batch_size: int,
    config: BenchmarkConfig,
    steps: int,
    progress: Progress,
) -> list[LatencyRow]:
    inputs = loaded["teacher"].family.example_inputs(loaded["teacher"].model.config, batch_size)
    seconds = time_side_by_side(candidates.denoisers, inputs, config, progress)
    rows = []
    for role, taken in seconds.items():
        ratios = [big / small for big, small in zip(seconds["teacher"], taken, strict=True)]
        memory = None
        if role in candidates.paths:
            memory = peak_memory_mib(
                candidates.backend, candidates.paths[role], batch_size=batch_size, threads=config.threads
            )
        progress.advance()
        rows.append(
            _row(role, candidates.backend, candidates.device, batch_size, taken, steps).model_copy(
                update={"speedup": statistics.median(ratios), "peak_memory_mib": memory}
            )
        )
    return rows


def _row(role: Role, backend: str, device: str, batch_size: int, seconds: list[float], steps: int) -> LatencyRow:
    summary = latency_summary(seconds)
    p50 = float(summary["latency_p50_ms"])
    return LatencyRow(
        role=role,
        backend=backend,
        device=device,
        precision="fp32",
        batch_size=batch_size,
        status="measured",
        step_p50_ms=p50,
        step_p90_ms=float(summary["latency_p90_ms"]),
        step_p99_ms=float(summary["latency_p99_ms"]),
        image_ms=p50 * steps / batch_size,
        images_per_second=1000 * batch_size / (p50 * steps),
    )


def _engine_rows(run: Run, recipe: Recipe, student: Loaded, steps: int) -> list[LatencyRow]:
    rows = []
    for backend in recipe.build.backends:
        for batch_size in recipe.benchmark.batch_sizes:
            reason = _why_no_engine(run, recipe, backend, batch_size)
            if reason:
                rows.append(
                    LatencyRow(role="student", backend=backend, device="cuda", precision="fp32",
                               batch_size=batch_size, status="not run", reason=reason)
                )  # fmt: skip
                continue
            engine = EngineDenoiser(backend, run.engine(backend) / "model.engine")
            inputs = student.family.example_inputs(student.model.config, batch_size, device="cuda")
            seconds = _engine_seconds(engine, inputs, recipe.benchmark)
            rows.append(_row("student", backend, "cuda", batch_size, seconds, steps))
    return rows


def _why_no_engine(run: Run, recipe: Recipe, backend: str, batch_size: int) -> str:
    if not (run.engine(backend) / "manifest.json").is_file():
        return "no engine was built"
    if not has_gpu():
        return "no NVIDIA GPU"
    if not recipe.build.min_batch <= batch_size <= recipe.build.max_batch:
        return f"engine built for batches of {recipe.build.min_batch} to {recipe.build.max_batch}"
    return ""


def _engine_seconds(engine: Denoiser, inputs: Mapping[str, Tensor], config: BenchmarkConfig) -> list[float]:
    seconds = []
    for index in range(config.warmup_iterations + config.iterations):
        began = time.perf_counter()
        prediction = engine(**inputs)  # waits for its stream
        if index >= config.warmup_iterations:
            seconds.append(time.perf_counter() - began)
        elif not bool(torch.isfinite(prediction).all()):
            raise StageFailedError(f"student on {engine.backend} predicts values that are not finite")
    return seconds


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _cost(loaded: Loaded) -> Cost:
    return Cost(
        params=parameter_count(loaded.model),
        macs=macs(loaded.model, loaded.family.example_inputs(loaded.model.config)),
        bytes=parameter_bytes(loaded.model),
    )
