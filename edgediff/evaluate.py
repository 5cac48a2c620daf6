"""The verb `evaluate`: images of teacher, pruned model and student, scored against real ones and the teacher's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from edgediff import data, model_folder, roles, samples
from edgediff.artifacts import atomic_file, content_hash, read_result, result_up_to_date, write_result
from edgediff.backends import best_device
from edgediff.backends.onnxruntime import OnnxRuntimeDenoiser
from edgediff.backends.pytorch import PyTorchDenoiser
from edgediff.class_accuracy import Candidate, class_accuracy
from edgediff.diffusion.denoiser import Denoiser
from edgediff.metrics.features import EfficientNetLite0, efficientnet_lite0
from edgediff.model_folder import Loaded
from edgediff.output import Output, number
from edgediff.quality import Drawn, draw, floor_row, model_row, profile, real_images, scored_with
from edgediff.recipe import PLACES, SPEED_ONLY, Recipe
from edgediff.reporting.tables import class_accuracy_table
from edgediff.results import Quality, QualityRow
from edgediff.run import ROLES, Role, Run

SHOWN_IMAGES = 64  # kept of every role, for the report's grids
FIGURES: tuple[tuple[str, str, Callable[[float], str]], ...] = (  # a row's name, its figure, and how that is written
    ("Fréchet distance ↓", "frechet_distance", number),
    ("KID ↓", "kid_mean", "{:.3f}".format),
    ("KID, ±", "kid_std", "{:.3f}".format),
    ("precision ↑", "precision", "{:.2f}".format),
    ("recall ↑", "recall", "{:.2f}".format),
    ("PSNR to the teacher ↑", "psnr_to_teacher", "{:.1f} dB".format),
    ("SSIM to the teacher ↑", "ssim_to_teacher", "{:.3f}".format),
    ("images of noise ↓", "noise_share", "{:.0%}".format),
)


def evaluate(run: Run, recipe: Recipe, output: Output) -> Quality:
    """Write `run.quality`, and the first images of every role.

    Images come from PyTorch on a GPU, else from ONNX Runtime where the role was exported, else from PyTorch; the row
    says which.
    """
    folders = {role: roles.folder(run, recipe, role) for role in ROLES}
    loaded = {role: model_folder.load(folders[role]) for role in ROLES}
    encoded = roles.encoded(run, recipe)
    reference = samples.scored(recipe.data, "test", loaded["teacher"], encoded, output)
    training = data.load(recipe.data, "train", shape=reference.shape, output=output)
    config = {
        **scored_with(recipe.evaluate, loaded["teacher"].scheduler),
        "data": recipe.data.model_dump(mode="json"),
    }
    inputs = {
        **{role: model.sha256 for role, model in loaded.items()},
        **{f"onnx/{role}": content_hash(run.onnx(role)) for role in ROLES if _exported(run, role)},
        "reference": reference.sha256,
        "training": training.sha256,
        "extractor": EfficientNetLite0.sha256,
    }
    if result_up_to_date(run.quality, stage="evaluate", config=config, inputs=inputs, aside=(*PLACES, *SPEED_ONLY)):
        quality = Quality.model_validate(read_result(run.quality))
        output.stage("evaluate", "up to date")
        show(quality, output)
        return quality

    settings = recipe.evaluate
    output.stage("evaluate", f"{settings.num_images} images, {settings.num_inference_steps} steps each")
    extractor = efficientnet_lite0()
    real = real_images(reference, training, extractor, settings.num_images, output)
    denoisers = {role: _denoiser(run, role, loaded[role]) for role in ROLES}
    drawn: dict[Role, Drawn] = {}
    for role in ROLES:
        drawn[role] = draw(denoisers[role], loaded[role], settings, output, role, reference)
        _save(run.samples(role), {"samples": torch.from_numpy(drawn[role].pixels[:SHOWN_IMAGES])})
    with output.progress("score", 1 + len(ROLES)) as progress:
        rows: list[QualityRow] = [floor_row(real)]
        for role in ROLES:
            progress.advance()
            rows.append(model_row(role, drawn[role], real, extractor, drawn["teacher"] if role != "teacher" else None))
    candidates = {role: Candidate(denoisers[role], loaded[role], drawn[role]) for role in ROLES}
    test = data.load(recipe.data, "test", shape=reference.shape, output=output)
    quality = Quality(
        profile=profile(real, extractor, settings, loaded["teacher"], recipe.data),
        rows=rows,
        class_accuracy=class_accuracy(candidates, settings, reference, test, training, output),
    )
    write_result(run.quality, quality.model_dump(mode="json"), stage="evaluate", config=config, inputs=inputs)
    show(quality, output)
    return quality


def show(quality: Quality, output: Output) -> None:
    """Show the quality table for people: a column a model, which leaves room for whole words on a narrow terminal."""
    settings = quality.profile
    rows = [
        [name, *("–" if (value := getattr(row, key)) is None else worded(value) for row in quality.rows)]
        for name, key, worded in FIGURES
    ]
    output.table(
        f"{settings.num_images:,} images a model, {settings.num_inference_steps} steps each; features of "
        f"{settings.extractor}; floor: {settings.floor_kind}",
        ["", *(row.role for row in quality.rows)],
        rows,
    )
    if quality.class_accuracy is not None:
        heading, *rows = class_accuracy_table(quality)
        output.table(f"class accuracy ↑ of {quality.class_accuracy.num_images} images", heading, rows)


def _exported(run: Run, role: Role) -> bool:
    return (run.onnx(role) / "manifest.json").is_file()


def _denoiser(run: Run, role: Role, loaded: Loaded) -> Denoiser:
    if best_device() == "cpu" and _exported(run, role):
        return OnnxRuntimeDenoiser(run.onnx(role) / "model.onnx")
    return PyTorchDenoiser(loaded.model, loaded.family, best_device())


def _save(path: Path, tensors: dict[str, Tensor]) -> None:
    with atomic_file(path) as temporary:
        save_file({name: value.contiguous() for name, value in tensors.items()}, temporary)
