"""The verb `diagnose`: pruned model and student against their teacher on held-out images, for people to look at."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from edgediff import diagnostics, model_folder, roles, samples
from edgediff.artifacts import atomic_folder, read_json, up_to_date, write_json, write_manifest
from edgediff.backends import best_device
from edgediff.data.images import Images
from edgediff.data.order import evenly
from edgediff.diagnostics import (
    BACKWARD_IMAGES,
    IMAGES,
    MAP_IMAGES,
    SHARPNESS_IMAGES,
    SHOWN_IMAGES,
    SHOWN_TIMESTEPS,
    TIMESTEPS,
)
from edgediff.diagnostics.by_timestep import errors_by_timestep
from edgediff.diagnostics.error_map import error_map
from edgediff.diagnostics.held_out import HeldOut, held_out, in_type_of, predict
from edgediff.diagnostics.sharpness import RHO, Part, sharpness
from edgediff.diagnostics.tiles import Tiles, tiles
from edgediff.diffusion import schedule
from edgediff.model_folder import Loaded
from edgediff.output import Output, number
from edgediff.recipe import PLACES, Recipe
from edgediff.reporting import figures
from edgediff.results import Diagnosis, ErrorPictures, ModelDiagnosis, Reference, Sharpness
from edgediff.run import ROLES, Run

ROWS = ["noised", "teacher's x0", "student's x0", "squared error"]
COMPARED: tuple[Literal["pruned", "student"], ...] = ("pruned", "student")


def diagnose(run: Run, recipe: Recipe, output: Output) -> Diagnosis:
    """Write diagnosis.json and pictures of single images into the run's `diagnosis/`.

    Everything is on test images with fixed noise, so two students of one teacher compare.
    Raises: BadInputError when a model is not there yet; StageFailedError when one predicts NaN or infinity.
    """
    loaded = {role: model_folder.load(roles.folder(run, recipe, role)) for role in ROLES}
    reference = samples.learned(recipe.data, "test", loaded["teacher"], roles.encoded(run, recipe), output)
    count = min(IMAGES, recipe.evaluate.num_images, len(reference))
    config = {
        "data": recipe.data.model_dump(mode="json"),
        "timesteps": [TIMESTEPS, SHOWN_TIMESTEPS],
        "images": [count, SHOWN_IMAGES, SHARPNESS_IMAGES, MAP_IMAGES],
        "rho": RHO,
    }
    inputs: dict[str, str] = {role: model.sha256 for role, model in loaded.items()}
    inputs["reference"] = reference.sha256
    folder = run.diagnosis
    if up_to_date(folder, stage="diagnose", config=config, inputs=inputs, aside=PLACES):
        diagnosis = Diagnosis.model_validate(read_json(folder / diagnostics.RESULT))
        output.stage("diagnose", "up to date")
        show(diagnosis, output)
        return diagnosis

    output.stage("diagnose", f"{count} held-out images at {TIMESTEPS} timesteps")
    for model in loaded.values():
        model.model.to(best_device())
    models = {role: loaded[role] for role in COMPARED}
    with output.progress("errors by timestep", TIMESTEPS * count) as progress:
        errors = errors_by_timestep(
            loaded["teacher"],
            models,
            reference,
            timesteps=schedule.spread(loaded["teacher"].scheduler, TIMESTEPS),
            num_images=count,
            batch_size=recipe.evaluate.batch_size,
            advance=progress.advance,
        )
    sharp = _sharpness(loaded["teacher"], models, reference, output)
    places = error_map(
        loaded["teacher"],
        loaded["student"],
        reference,
        timesteps=schedule.spread(loaded["teacher"].scheduler, SHOWN_TIMESTEPS),
        num_images=min(MAP_IMAGES, len(reference)),
        batch_size=recipe.evaluate.batch_size,
    )
    with atomic_folder(folder) as temporary:
        save_file(places, temporary / diagnostics.MAP)
        diagnosis = Diagnosis(
            reference=Reference(name=reference.name, sha256=reference.sha256, num_images=len(reference)),
            num_images=count,
            prediction_type=schedule.prediction_type(loaded["teacher"].scheduler),
            models={
                role: ModelDiagnosis(
                    prediction_type=schedule.prediction_type(model.scheduler),
                    errors=errors[role],
                    sharpness=sharp[role],
                )
                for role, model in models.items()
            },
            pictures=_draw(loaded["teacher"], loaded["student"], reference, temporary),
        )
        write_json(temporary / diagnostics.RESULT, diagnosis.model_dump(mode="json"))
        write_manifest(temporary, stage="diagnose", config=config, inputs=inputs)
    show(diagnosis, output)
    return diagnosis


def show(diagnosis: Diagnosis, output: Output) -> None:
    """Show the errors by timestep, and the sharpness, for people."""
    pruned, student = (diagnosis.models[role] for role in COMPARED)
    rows = [
        [
            str(after.timestep),
            *(f"{value:.2g}" for value in (before.mse, after.mse, before.x0_rmse, after.x0_rmse)),
            f"{after.slope:.3f}",
            f"{after.intercept:.3f}",
        ]
        for before, after in zip(pruned.errors, student.errors, strict=True)
    ]
    title = f"against the teacher's {diagnosis.prediction_type}, {diagnosis.num_images} held-out images"
    errors = [f"{error} ↓\n{role}" for error in ("MSE", "x0 RMSE") for role in COMPARED]
    output.table(title, ["t", *errors, "slope → 1\nstudent", "intercept → 0\nstudent"], rows)
    output.table(
        f"sharpness, rho {student.sharpness.rho:g}",
        ["", "MSE", "gradient norm", "sharpness"],
        [
            [role, *(number(value) for value in (found.loss, found.gradient_norm, found.sharpness))]
            for role, found in ((role, diagnosis.models[role].sharpness) for role in COMPARED)
        ],
    )


def _sharpness(
    teacher: Loaded, models: Mapping[Literal["pruned", "student"], Loaded], images: Images, output: Output
) -> dict[Literal["pruned", "student"], Sharpness]:
    """Measure the sharpness of every model's distillation error."""
    indices = evenly(len(images), SHARPNESS_IMAGES)
    timesteps = schedule.spread(teacher.scheduler, len(indices)).split(BACKWARD_IMAGES)
    batches = [
        (batch, at, predict("teacher", teacher, batch, at, teacher).value.to(best_device()))
        for batch, at in zip(held_out(images, indices, BACKWARD_IMAGES), timesteps, strict=True)
    ]

    def part(of: Loaded, batch: HeldOut, at: Tensor, expected: Tensor) -> Part:
        sample, at = (value.to(best_device()) for value in (batch.noised(teacher, at), at))
        conditioning = {name: rows.to(best_device()) for name, rows in batch.conditioning.items()}

        def loss(model: nn.Module) -> Tensor:
            said = of.family.prediction(model, sample, at, **conditioning)
            error = in_type_of(teacher, said, of, sample, at) - expected
            return error.square().mean() * len(at) / len(indices)

        return loss

    found = {}
    with output.progress("sharpness", len(models)) as progress:
        for role, model in models.items():
            found[role] = sharpness(model.model, [part(model, *batch) for batch in batches])
            progress.advance()
    return found


def _draw(teacher: Loaded, student: Loaded, images: Images, folder: Path) -> ErrorPictures:
    """Write one picture an image into `folder`, with one scale of colours for all errors."""
    timesteps, indices = schedule.spread(teacher.scheduler, SHOWN_TIMESTEPS), evenly(len(images), SHOWN_IMAGES)
    decode = samples.decoder(teacher)
    found = [tiles(teacher, student, image, timesteps, decode) for image in held_out(images, indices, 1)]
    low, high = figures.error_range(np.stack([image.squared_error for image in found]))
    files = [f"image-{place}.png" for place in range(len(found))]
    for name, image in zip(files, found, strict=True):
        (folder / name).write_bytes(figures.grid(coloured(image, low, high), SHOWN_TIMESTEPS))
    return ErrorPictures(
        files=files, images=indices.tolist(), timesteps=timesteps.tolist(), rows=ROWS, low=low, high=high
    )


def coloured(image: Tiles, low: float, high: float) -> NDArray[np.uint8]:
    """Return all tiles (4·T, 3, H, W), row by row as in ROWS."""
    shown = [
        np.broadcast_to(row, (len(row), 3, *row.shape[2:]))
        for row in (image.noised, image.teacher_x0, image.student_x0)
    ]
    errors = np.stack([figures.error_colours(error, low, high) for error in image.squared_error])
    # Errors of latents have fewer places than the images that are made of them: the nearest one stands for a pixel.
    rows, columns = (
        np.arange(pixels) * places // pixels
        for pixels, places in zip(shown[0].shape[2:], errors.shape[1:3], strict=True)
    )
    errors = errors[:, rows][:, :, columns]
    return np.concatenate([*shown, errors.transpose(0, 3, 1, 2)])
