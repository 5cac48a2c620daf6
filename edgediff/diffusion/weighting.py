"""How much a timestep counts in a loss: factors of the per-sample losses, whatever they measure."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from edgediff.diffusion.parameterisation import snr
from edgediff.diffusion.schedule import FLOW, cleanest, coefficients

GAMMA = 5.0  # Hang et al. 2023, their best

# What a squared error in a space is, as a multiple of the squared error of x0.
SCALE: dict[str, Callable[[Tensor], Tensor]] = {
    "epsilon": lambda ratio: ratio,
    "v_prediction": lambda ratio: ratio + 1,
    "sample": torch.ones_like,
    FLOW: lambda ratio: (ratio.sqrt() + 1).square(),
}


def timestep_weights(kind: str, scheduler: Any, timestep: Tensor, prediction_type: str) -> Tensor:
    """Return the factor (B,) of a loss measured in the space of `prediction_type`.

    `uniform`: 1 in that space. The others weigh a squared error the same whichever space measures it:
    `min_snr`: min(SNR, 5) of the squared x0 error (Hang et al. 2023), which holds back low noise.
    `snr_truncated`: max(SNR, 1) of the squared x0 error (Salimans & Ho 2022), which never lets high noise go.
    `angular`: the squared v error, with timesteps as if drawn uniformly in the angle arctan(s / a) from data to noise.
    A DDIM step over the angle d moves its end by the v error times sin(d), so this is what sampling adds up; a schedule
    that dwells where the angle hardly moves (the last third of DDPM's) no longer takes its share of the training.
    """
    if kind == "uniform":
        return torch.ones(len(timestep), device=timestep.device)
    # SNR is 0 at the last timestep of a zero-terminal-SNR schedule, where eps carries no information on x0 at all.
    ratio = snr(scheduler, timestep).clamp(min=1e-8)
    if kind == "min_snr":
        of_x0 = ratio.clamp(max=GAMMA)
    elif kind == "snr_truncated":
        of_x0 = ratio.clamp(min=1.0)
    else:
        speed = _speed_on(scheduler, timestep.device)[timestep - cleanest(scheduler)]
        of_x0 = speed * SCALE["v_prediction"](ratio)
    return of_x0 / SCALE[prediction_type](ratio)


@lru_cache(maxsize=8)
def _speed_on(scheduler: Any, device: torch.device) -> Tensor:
    """Return `angular_speed` on a device, which is waited for once and not in every step."""
    return angular_speed(scheduler).to(device)


def angular_speed(scheduler: Any) -> Tensor:
    """Return how fast the angle from data to noise grows at every timestep, (T,), with mean 1."""
    first = cleanest(scheduler)
    timesteps = torch.arange(first, first + scheduler.config.num_train_timesteps)
    a, s = coefficients(scheduler, timesteps, torch.empty(len(timesteps), dtype=torch.float64))
    (speed,) = torch.gradient(torch.atan2(s, a))
    return (speed / speed.mean()).float()
