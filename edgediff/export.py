"""The verb `export`: a pipeline folder → ONNX that agrees with PyTorch."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx
import psutil
import torch
from torch import Tensor

from edgediff import model_folder, roles
from edgediff.artifacts import atomic_folder, read_json, up_to_date, write_json, write_manifest
from edgediff.backends.onnx_graph import tidy, write_graph
from edgediff.backends.onnxruntime import OnnxRuntimeDenoiser
from edgediff.backends.pytorch import PyTorchDenoiser
from edgediff.diffusion.denoiser import Denoiser
from edgediff.errors import BadInputError, StageFailedError
from edgediff.metrics.cost import parameter_bytes
from edgediff.model_folder import Loaded
from edgediff.output import Output, Progress
from edgediff.recipe import ExportConfig, Recipe
from edgediff.results import Parity, ParityCase
from edgediff.run import ROLES, Role, Run

MEMORY_COPIES = 4  # of the weights: the model, the graph being written, and two while ONNX Runtime loads it
WRITING_SHARE = 10  # of the progress: what writing the graph takes, in comparisons at one batch size


def export(run: Run, recipe: Recipe, role: Role, output: Output) -> Parity:
    """Write `run.onnx(role)`: model.onnx with a dynamic batch, the configs beside it, and parity.json.

    Raises: BadInputError when the role's model is not there yet or memory is short; CorruptArtifactError for a
    damaged one; StageFailedError when the graph differs from PyTorch by more than the tolerance, and then it stays
    under a name that says so.
    """
    source, folder = roles.folder(run, recipe, role), run.onnx(role)
    config = {"export": recipe.export.model_dump(mode="json")}
    inputs = {"weights": model_folder.fingerprint(source)}
    if up_to_date(folder, stage="export", config=config, inputs=inputs):
        parity = Parity.model_validate(read_json(folder / "parity.json"))
        output.stage("export", f"{role} up to date: parity {parity.max_abs:.1e}")
        return parity

    loaded = model_folder.load(source)
    _check_memory(parameter_bytes(loaded.model))
    output.stage("export", f"{role} to ONNX, opset {recipe.export.opset}")
    steps = WRITING_SHARE + 1 + len(recipe.export.batch_sizes)
    with atomic_folder(folder) as temporary, output.progress(f"export {role}", steps) as progress:
        path = temporary / "model.onnx"
        write_graph(loaded.model, loaded.family, path, recipe.export.opset)
        tidy(path)
        progress.advance(WRITING_SHARE, note="graph written")
        onnx.checker.check_model(str(path), full_check=True)
        progress.advance(note="graph checked")
        parity = compare(loaded, path, recipe.export, progress)
        if parity.max_abs > parity.tolerance:
            raise _kept_aside(path, folder, role, parity)
        shutil.copy(model_folder.component(source) / "config.json", temporary / "config.json")
        shutil.copy(model_folder.scheduler_config(source), temporary / "scheduler_config.json")
        write_json(temporary / "parity.json", parity.model_dump(mode="json"))
        write_manifest(temporary, stage="export", config=config, inputs=inputs)
    shutil.rmtree(_aside(folder), ignore_errors=True)  # of an earlier attempt: it no longer says anything
    output.stage("export", f"{role}: differs from PyTorch by at most {parity.max_abs:.1e}")
    return parity


def check_exportable(run: Run, recipe: Recipe) -> None:
    """Find out, before minutes of work, whether every role's model is there and undamaged.

    Raises: BadInputError naming the command that makes what is missing; CorruptArtifactError for a damaged model.
    """
    for role in ROLES:
        model_folder.fingerprint(roles.folder(run, recipe, role))


def compare(loaded: Loaded, path: Path, config: ExportConfig, progress: Progress) -> Parity:
    """Compare the graph with PyTorch on seeded noise, for every batch size at the first, middle and last timestep.

    Raises: StageFailedError when either predicts a value that is not finite: no difference can be told then.
    """
    denoisers: tuple[Denoiser, ...] = (PyTorchDenoiser(loaded.model, loaded.family), OnnxRuntimeDenoiser(path))
    last = loaded.scheduler.config.num_train_timesteps - 1
    cases = []
    for batch_size in config.batch_sizes:
        inputs = loaded.family.example_inputs(loaded.model.config, batch_size)
        for timestep in (0, last // 2, last):
            inputs["timestep"] = torch.full((batch_size,), timestep)
            predictions = {denoiser.backend: denoiser(**inputs) for denoiser in denoisers}
            for backend, prediction in predictions.items():
                if not bool(torch.isfinite(prediction).all()):
                    raise StageFailedError(
                        f"values that are not finite from {backend} (batch {batch_size}, timestep {timestep})",
                        "a diverged training leaves such weights: look at its log",
                    )
            cases.append(_case(timestep, *predictions.values()))
        progress.advance(note=f"compared at batch {batch_size}")
    return Parity(tolerance=config.tolerance, opset=config.opset, cases=cases)


def _case(timestep: int, expected: Tensor, measured: Tensor) -> ParityCase:
    a, b = expected.double().flatten(), measured.double().flatten()
    return ParityCase(
        batch_size=len(expected),
        timestep=timestep,
        max_abs=float((a - b).abs().max()),
        relative=float((a - b).norm() / a.norm().clamp_min(1e-12)),
        cosine=float(torch.nn.functional.cosine_similarity(a, b, dim=0)),
    )


def _check_memory(weight_bytes: int) -> None:
    """Refuse an export that the system would kill half way."""
    needed, available = MEMORY_COPIES * weight_bytes, psutil.virtual_memory().available
    if needed > available:
        raise BadInputError(
            f"not enough memory to export: about {needed / 2**30:.1f} GiB needed, {available / 2**30:.1f} GiB free",
            "close other programs, or export on a larger machine",
        )


def _aside(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.over-tolerance")


def _kept_aside(path: Path, folder: Path, role: str, parity: Parity) -> StageFailedError:
    """Move a graph that failed to a folder whose name says so, and word the failure."""
    worst = max(parity.cases, key=lambda case: case.max_abs)
    aside = _aside(folder)
    with atomic_folder(aside) as kept:
        for file in path.parent.iterdir():
            shutil.copy(file, kept / file.name)
        write_json(kept / "parity.json", parity.model_dump(mode="json"))
    return StageFailedError(
        f"exported {role} differs from PyTorch by {worst.max_abs:.1e}, allowed: {parity.tolerance:.1e} "
        f"(batch {worst.batch_size}, timestep {worst.timestep})",
        f"the graph is kept for inspection: `{aside}`; allow more with `export.tolerance=…`",
    )
