"""What a model is trained to predict."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from edgediff.errors import BadInputError

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


def check_prediction_type(prediction_type: str) -> None:
    """Raise BadInputError for a prediction type that no training or sampling here can use."""
    if prediction_type not in PREDICTION_TYPES:
        raise BadInputError(
            f"prediction type is not supported: {prediction_type}", f"supported: {', '.join(PREDICTION_TYPES)}"
        )


def prediction_target(scheduler: Any, x0: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
    """Return what a model of the scheduler's `prediction_type` should predict: eps, v or x0, (B, C, H, W).

    Raises: BadInputError for any other prediction type.
    """
    prediction_type = scheduler.config.prediction_type
    check_prediction_type(prediction_type)
    if prediction_type == "epsilon":
        return noise
    return x0 if prediction_type == "sample" else scheduler.get_velocity(x0, noise, timestep)
