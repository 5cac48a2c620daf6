"""The forward process of one training batch: which timesteps, how noisy, and what the model should predict."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from edgediff.errors import BadInputError

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


def check_prediction_type(prediction_type: str) -> None:
    """Raise BadInputError for a prediction type that no training or sampling here can use."""
    if prediction_type not in PREDICTION_TYPES:
        raise BadInputError(
            f"prediction type is not supported: {prediction_type}", f"supported: {', '.join(PREDICTION_TYPES)}"
        )


def antithetic_timesteps(batch_size: int, num_train_timesteps: int, generator: torch.Generator) -> Tensor:
    """Draw timesteps (B,) int64 in pairs t and T-1-t, which lowers the variance of the loss (DDIM code; Song 2021)."""
    half = torch.randint(0, num_train_timesteps, ((batch_size + 1) // 2,), generator=generator)
    return torch.cat((half, num_train_timesteps - 1 - half))[:batch_size]


def prediction_target(scheduler: Any, x0: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
    """Return what a model of the scheduler's `prediction_type` should predict: eps, v or x0, (B, C, H, W).

    Raises: BadInputError for any other prediction type.
    """
    prediction_type = scheduler.config.prediction_type
    check_prediction_type(prediction_type)
    if prediction_type == "epsilon":
        return noise
    return x0 if prediction_type == "sample" else scheduler.get_velocity(x0, noise, timestep)
