"""How far models are from their teacher at every noise level, and how a line would correct them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor

from edgediff.data.images import Images
from edgediff.data.order import evenly
from edgediff.diagnostics.held_out import Prediction, held_out, predict
from edgediff.losses.fit import fit
from edgediff.model_folder import Loaded
from edgediff.results import TimestepError

Name = TypeVar("Name", bound=str)


def errors_by_timestep(
    teacher: Loaded,
    models: Mapping[Name, Loaded],
    images: Images,
    *,
    timesteps: Tensor,
    num_images: int,
    batch_size: int,
    advance: Callable[[int], None],
) -> dict[Name, list[TimestepError]]:
    """Compare every model with its teacher on the same noised images at the timesteps (T,) int64.

    Args: num_images: spread over all of `images`. advance: called with the images of a batch after each timestep.
    Returns: one entry a timestep, in their order.
    Raises: StageFailedError for a prediction that is not finite.
    """
    rows: dict[Name, list[list[Tensor]]] = {name: [[] for _ in timesteps] for name in models}
    for batch in held_out(images, evenly(len(images), num_images), batch_size):
        for place, timestep in enumerate(timesteps):
            at = timestep.expand(len(batch.x0))
            expected = predict("teacher", teacher, batch, at, teacher)
            for name, model in models.items():
                rows[name][place].append(compared(predict(name, model, batch, at, teacher), expected))
            advance(len(at))
    return {
        name: [summary(int(timestep), torch.cat(parts)) for timestep, parts in zip(timesteps, places, strict=True)]
        for name, places in rows.items()
    }


def compared(student: Prediction, teacher: Prediction) -> Tensor:
    """Return for every channel of every image (B·C, 4): both mean squared errors, slope and intercept of the fit."""
    mse = (student.value - teacher.value).square().flatten(2).mean(-1)
    x0_mse = (student.x0 - teacher.x0).square().flatten(2).mean(-1)
    slope, intercept = fit(student.value.flatten(2), teacher.value.flatten(2))
    return torch.stack([mse, x0_mse, slope, intercept], dim=-1).flatten(0, 1).double()


def summary(timestep: int, rows: Tensor) -> TimestepError:
    """Return the means of `compared`'s rows (N, 4), and the spreads of slope and intercept."""
    mse, x0_mse, slope, intercept = rows.mean(0).tolist()
    _, _, slope_std, intercept_std = rows.std(0, correction=0).tolist()
    return TimestepError(
        timestep=timestep,
        mse=mse,
        x0_rmse=x0_mse**0.5,
        slope=slope,
        slope_std=slope_std,
        intercept=intercept,
        intercept_std=intercept_std,
    )
