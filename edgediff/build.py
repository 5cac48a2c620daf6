"""The verb `build`: the student's ONNX graph → an engine for every builder the recipe names."""

from __future__ import annotations

import time
from pathlib import Path

from edgediff import model_folder
from edgediff.artifacts import (
    atomic_folder,
    content_hash,
    read_json,
    sha256,
    up_to_date,
    verify,
    write_json,
    write_manifest,
)
from edgediff.backends import availability
from edgediff.backends.tensorrt import build_engine, library
from edgediff.errors import BadInputError
from edgediff.output import Output
from edgediff.recipe import Recipe
from edgediff.results import Build
from edgediff.run import Run


def build(run: Run, recipe: Recipe, output: Output) -> list[Build]:
    """Write `run.engine(backend)` for every backend of `recipe.build`.

    Raises: BadInputError before an export, or after another distillation than the exported one; CorruptArtifactError
    for a damaged export; what `check_buildable` raises; StageFailedError, in the builder's own words, when it refuses
    the graph.
    """
    if not recipe.build.backends:
        output.stage("build", "no engine asked for")
        return []
    check_buildable(recipe)
    _check_export(run)
    return [_build_one(run, recipe, backend, output) for backend in recipe.build.backends]


def check_buildable(recipe: Recipe) -> None:
    """Find out, before hours of work, whether every builder the recipe names can build here.

    Raises: MissingExtraError with the exact command that installs the first missing one; BadInputError for the
    classic TensorRT on a machine without the GPU that it would build for.
    """
    for backend in recipe.build.backends:
        library(backend)
        found = availability()[backend]
        if not found.can_build:
            raise BadInputError(
                f"{backend} cannot build here: {found.why_not}", "build with tensorrt_rtx, or on the device itself"
            )


def _check_export(run: Run) -> None:
    """Refuse an export that is missing, damaged, or of a student that has been replaced since."""
    exported = run.onnx("student")
    if not (exported / "manifest.json").is_file():
        raise BadInputError(f"nothing to build from: `{exported}`", f"run `edgediff export {run.path}` first")
    made_from = verify(exported)["inputs"]["weights"]
    if run.student.is_dir() and made_from != model_folder.fingerprint(run.student):
        raise BadInputError(
            f"exported before the student that stands there now: `{exported}`",
            f"run `edgediff export {run.path}` again",
        )


def _build_one(run: Run, recipe: Recipe, backend: str, output: Output) -> Build:
    folder, graph = run.engine(backend), run.onnx("student") / "model.onnx"
    settings = recipe.build.model_dump(mode="json", exclude={"backends"})
    inputs = {"onnx": content_hash(run.onnx("student"))}
    version = library(backend).__version__
    config = {"backend": backend, "version": version, **settings}
    if up_to_date(folder, stage="build", config=config, inputs=inputs):
        result = Build.model_validate(read_json(folder / "build.json"))
        output.stage("build", f"up to date: {_sentence(result)}")
        return result

    output.stage("build", f"engine with {backend} {version}")
    batch = (recipe.build.min_batch, recipe.build.opt_batch, recipe.build.max_batch)
    began = time.perf_counter()
    engine, targets = _built(backend, graph, batch, output)
    result = Build(
        backend=backend,
        version=version,
        seconds=time.perf_counter() - began,
        bytes=len(engine),
        onnx_sha256=sha256(graph),
        batch=batch,
        compute_capabilities=targets,
    )
    with atomic_folder(folder) as temporary:
        (temporary / "model.engine").write_bytes(engine)
        write_json(temporary / "build.json", result.model_dump(mode="json"))
        write_manifest(temporary, stage="build", config=config, inputs=inputs)
    output.stage("build", _sentence(result))
    return result


def _built(backend: str, graph: Path, batch: tuple[int, int, int], output: Output) -> tuple[bytes, list[str]]:
    spoke = time.monotonic()

    def on_progress(phase: str, steps: int) -> bool:
        """Speak every few seconds: builders give no total, and a silent build looks like a hang."""
        nonlocal spoke
        if time.monotonic() - spoke > 5:
            spoke = time.monotonic()
            output.say(f"build: {phase}, {steps} steps done")
        return True

    return build_engine(backend, graph, batch, on_progress)


def _sentence(result: Build) -> str:
    gpus = f" for {', '.join(result.compute_capabilities)}" if result.compute_capabilities else ""
    return f"{result.backend} engine of {result.bytes / 1e6:.1f} MB in {result.seconds:.1f} s{gpus}"
