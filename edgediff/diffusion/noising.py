"""What a model is trained to predict."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from edgediff.diffusion import schedule
from edgediff.errors import BadInputError

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")  # of DDPM's kind of schedule; flow matching has one


def check_prediction_type(prediction_type: str) -> None:
    """Raise BadInputError for a prediction type that no training or sampling here can use."""
    if prediction_type not in PREDICTION_TYPES:
        raise BadInputError(
            f"prediction type is not supported: {prediction_type}", f"supported: {', '.join(PREDICTION_TYPES)}"
        )


def prediction_target(scheduler: Any, x0: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
    """Return what a model of this scheduler should predict: eps, v, x0 or the flow's velocity, (B, C, H, W).

    Raises: BadInputError for any other prediction type.
    """
    if schedule.is_flow(scheduler):
        return noise - x0
    prediction_type = scheduler.config.prediction_type
    check_prediction_type(prediction_type)
    if prediction_type == "epsilon":
        return noise
    return x0 if prediction_type == "sample" else scheduler.get_velocity(x0, noise, timestep)
