"""The verb `benchmark`: teacher, pruned model and student timed side by side on every backend that runs here.

Rounds visit every role once, in an order that rotates, so that whatever disturbs the machine disturbs all alike; the
speedup is the median of the ratios within rounds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from edgediff import model_folder, roles
from edgediff.artifacts import content_hash, cpu_name, read_json, read_result, result_up_to_date, write_result
from edgediff.backends import gpu_name, has_gpu
from edgediff.backends.memory import peak_memory_mib
from edgediff.backends.onnxruntime import CUDA_PROVIDER, OnnxRuntimeDenoiser, available_providers
from edgediff.backends.pytorch import PyTorchDenoiser
from edgediff.backends.tensorrt import EngineDenoiser
from edgediff.budgets.measure import clock_of, feeds_of, load, side_by_side, undisturbed
from edgediff.diffusion import guidance
from edgediff.diffusion.denoiser import Denoiser
from edgediff.errors import BadInputError, StageFailedError
from edgediff.metrics.cost import model_cost
from edgediff.metrics.percentiles import latency_summary
from edgediff.model_folder import Loaded
from edgediff.output import Output, Progress, number
from edgediff.recipe import BenchmarkConfig, Recipe
from edgediff.results import BudgetCheck, Build, Latency, LatencyProfile, LatencyRow
from edgediff.run import ROLES, Role, Run

Key = TypeVar("Key")


def benchmark(run: Run, recipe: Recipe, output: Output) -> Latency:
    """Write `run.latency`: one row for every role, backend and batch size; rows that cannot run here say why.

    Raises: BadInputError when a model or its export is missing; StageFailedError for a model whose output is not
    finite.
    """
    folders = {role: roles.folder(run, recipe, role) for role in ROLES}
    for role in ROLES:
        if not (run.onnx(role) / "manifest.json").is_file():
            raise BadInputError(f"nothing to time: `{run.onnx(role)}`", f"run `edgediff export {run.path}` first")
    loaded = {role: model_folder.load(folders[role]) for role in ROLES}
    config: dict[str, Any] = {
        "benchmark": recipe.benchmark.model_dump(mode="json"),
        "evaluate": recipe.evaluate.model_dump(include={"num_inference_steps", "guidance_scale"}),
        "build": recipe.build.model_dump(mode="json", include={"backends"}),
        "device": cpu_name(),
        "gpu": gpu_name(),
    }
    if recipe.prune.needs_profile:
        config["budget"] = True
    inputs: dict[str, str] = {
        **{role: loaded[role].sha256 for role in ROLES},
        **{f"onnx/{role}": content_hash(run.onnx(role)) for role in ROLES},
        **{f"engine/{backend}": content_hash(run.engine(backend)) for backend in run.built(recipe.build.backends)},
    }
    if result_up_to_date(run.latency, stage="benchmark", config=config, inputs=inputs):
        latency = Latency.model_validate(read_result(run.latency))
        output.stage("benchmark", "up to date")
        show(latency, output)
        return latency

    settings = recipe.benchmark
    of_teacher = loaded["teacher"]
    conditional = bool(of_teacher.family.conditioning_names(of_teacher.model.config))
    profile = LatencyProfile(
        device=cpu_name(),
        threads=settings.threads,
        warmup_iterations=settings.warmup_iterations,
        iterations=settings.iterations,
        num_inference_steps=recipe.evaluate.num_inference_steps,
        forwards=guidance.forwards(conditional, recipe.evaluate.guidance_scale),
        sample_shape=of_teacher.sample_shape,
        gpu=gpu_name(),
    )
    output.stage("benchmark", f"{settings.iterations} rounds, {settings.threads} thread(s)")
    rows: list[LatencyRow] = []
    with _threads(settings.threads):
        for denoisers, paths in _candidates(run, folders, loaded, settings):
            for batch_size in settings.batch_sizes:
                batch = of_teacher.family.example_inputs(of_teacher.model.config, batch_size)
                seconds = _timed(denoisers, batch, settings, output)
                rows += _rows(denoisers, paths, seconds, batch_size, profile)
    rows += _engine_rows(run, recipe, loaded["student"], profile, output)
    budget = _budget_check(run, of_teacher, settings.threads, output) if recipe.prune.needs_profile else None
    latency = Latency(
        profile=profile,
        costs={role: model_cost(loaded[role].family, loaded[role].model.config) for role in ROLES},
        rows=rows,
        budget=budget,
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
        f"latency on {profile.device}, {profile.threads} thread(s); an image takes {profile.num_inference_steps} steps"
        + (f" of {profile.forwards} forwards" if profile.forwards > 1 else ""),
        ["", "backend", "batch", "step ms", "p99", "image ms", "MiB", "speedup"],
        rows,
    )
    for row in latency.rows:
        if row not in measured:
            output.say(f"not run: {row.role} on {row.backend}, batch {row.batch_size}: {row.reason}")


def _candidates(
    run: Run, folders: Mapping[Role, Path], loaded: Mapping[Role, Loaded], config: BenchmarkConfig
) -> Iterator[tuple[dict[Role, Denoiser], Mapping[Role, Path]]]:
    """Yield the denoisers of one backend after the other, with their files where peak memory can be measured.

    One after the other, so that only one backend's models are in memory beside the loaded ones.
    """
    graphs = {role: run.onnx(role) / "model.onnx" for role in ROLES}
    yield {role: PyTorchDenoiser(loaded[role].model, loaded[role].family) for role in ROLES}, folders
    yield {role: OnnxRuntimeDenoiser(graphs[role], threads=config.threads) for role in ROLES}, graphs
    if has_gpu():
        yield {role: PyTorchDenoiser(loaded[role].model, loaded[role].family, "cuda") for role in ROLES}, {}
        if CUDA_PROVIDER in available_providers():
            yield {role: OnnxRuntimeDenoiser(graphs[role], provider=CUDA_PROVIDER) for role in ROLES}, {}


def _timed(
    denoisers: Mapping[Role, Denoiser], inputs: Mapping[str, Tensor], config: BenchmarkConfig, output: Output
) -> dict[Role, list[float]]:
    first, batch_size = next(iter(denoisers.values())), len(inputs["sample"])
    rounds = config.iterations + config.warmup_iterations
    what = f"{first.backend} {first.device}, batch {batch_size}"
    with output.progress(what, len(denoisers) * rounds) as progress:
        return time_side_by_side(denoisers, inputs, config, progress)


def _rows(
    denoisers: Mapping[Role, Denoiser],
    paths: Mapping[Role, Path],
    seconds: Mapping[Role, list[float]],
    batch_size: int,
    profile: LatencyProfile,
) -> Iterator[LatencyRow]:
    for role, taken in seconds.items():
        row = _row(role, denoisers[role], batch_size, taken, profile)
        row.speedup = statistics.median(big / own for big, own in zip(seconds["teacher"], taken, strict=True))
        if role in paths:
            row.peak_memory_mib = peak_memory_mib(
                row.backend, paths[role], batch_size=batch_size, threads=profile.threads
            )
        yield row


def _row(role: Role, denoiser: Denoiser, batch_size: int, seconds: list[float], profile: LatencyProfile) -> LatencyRow:
    summary = latency_summary(seconds)
    p50 = float(summary["latency_p50_ms"])
    forwards = profile.num_inference_steps * profile.forwards
    return LatencyRow(
        role=role,
        backend=denoiser.backend,
        device=denoiser.device,
        precision=denoiser.precision,
        batch_size=batch_size,
        status="measured",
        step_p50_ms=p50,
        step_p90_ms=float(summary["latency_p90_ms"]),
        step_p99_ms=float(summary["latency_p99_ms"]),
        image_ms=p50 * forwards / batch_size,
        images_per_second=1000 * batch_size / (p50 * forwards),
    )


def _budget_check(run: Run, teacher: Loaded, threads: int, output: Output) -> BudgetCheck:
    """Measure a step of teacher and student as the profile was measured that the student was chosen by."""
    roles: tuple[Role, ...] = ("teacher", "student")
    feeds = feeds_of(teacher.family, teacher.model.config)
    runs = {role: load(run.onnx(role) / "model.onnx", feeds, threads) for role in roles}
    output.stage("benchmark", "the predicted latency, measured as the profile was")
    times = side_by_side(runs, threads)
    return BudgetCheck(
        device=cpu_name(),
        threads=threads,
        clock=clock_of(threads)[0],
        teacher_ms=undisturbed(times["teacher"]),
        student_ms=undisturbed(times["student"]),
    )


def _engine_rows(
    run: Run, recipe: Recipe, student: Loaded, profile: LatencyProfile, output: Output
) -> Iterator[LatencyRow]:
    for backend in recipe.build.backends:
        for batch_size in recipe.benchmark.batch_sizes:
            reason = _why_no_engine(run, recipe, backend, batch_size)
            if reason:
                yield LatencyRow(
                    role="student",
                    backend=backend,
                    device=EngineDenoiser.device,
                    precision=EngineDenoiser.precision,
                    batch_size=batch_size,
                    status="not run",
                    reason=reason,
                )
                continue
            engine = EngineDenoiser(backend, run.engine(backend) / "model.engine")
            inputs = student.family.example_inputs(student.model.config, batch_size)
            seconds = _timed({"student": engine}, inputs, recipe.benchmark, output)
            yield _row("student", engine, batch_size, seconds["student"], profile)


def _why_no_engine(run: Run, recipe: Recipe, backend: str, batch_size: int) -> str:
    if backend not in run.built(recipe.build.backends):
        return "no engine was built"
    if not has_gpu():
        return "no NVIDIA GPU"
    smallest, _, largest = Build.model_validate(read_json(run.engine(backend) / "build.json")).batch
    if not smallest <= batch_size <= largest:
        return f"engine built for batches of {smallest} to {largest}"
    return ""


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
