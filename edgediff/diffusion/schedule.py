"""What a noise schedule says of a timestep, for the two kinds of schedulers that pipelines carry.

Both mix an image with noise, x_t = a·x0 + s·eps. DDPM's kind: a = sqrt(alpha_bar_t), s = sqrt(1 - alpha_bar_t), t from
0 to T - 1. Flow matching (Lipman et al. 2023; rectified flow, Liu et al. 2023): a = 1 - t/T, s = t/T, t from 1 to T, so
that its noisiest timestep is noise alone; a sampler's `shift` changes which timesteps are visited, not what they mean.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from edgediff.errors import BadInputError

BETAS = ("beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr")  # of a config
FLOW = "flow_prediction"  # the velocity eps - x0 of a straight path


def is_flow(scheduler: Any) -> bool:
    """Tell whether a scheduler is one of flow matching."""
    return isinstance(scheduler, FlowMatchEulerDiscreteScheduler)


def prediction_type(scheduler: Any) -> str:
    """Return what a model of this scheduler predicts: epsilon, v_prediction, sample or flow_prediction."""
    return FLOW if is_flow(scheduler) else scheduler.config.prediction_type


def check_student_prediction(scheduler: Any, asked: str | None, space: str | None) -> None:
    """Find out whether a student of this scheduler can predict what is asked for, and be compared in a space.

    Args: None: what the scheduler says.
    Raises: BadInputError.
    """
    if is_flow(scheduler):
        if (asked, space) != (None, None):
            raise BadInputError(
                "a flow-matching student predicts the flow's velocity and nothing else",
                "leave `student_prediction` and `kd_space` out, and `kd angular`, which sets one",
            )
    elif asked == "epsilon" and scheduler.alphas_cumprod[-1] == 0:
        raise BadInputError(
            "a student cannot predict epsilon here: of the noisiest timestep, noise alone, it says nothing",
            "choose `student_prediction: v_prediction`, or leave it out",
        )


def cleanest(scheduler: Any) -> int:
    """Return the first timestep; the last one is `num_train_timesteps - 1` further."""
    return 1 if is_flow(scheduler) else 0


def spread(scheduler: Any, count: int) -> Tensor:
    """Return timesteps (count,) int64 from the cleanest to the noisiest."""
    first = cleanest(scheduler)
    return torch.linspace(first, first + scheduler.config.num_train_timesteps - 1, count).long()


def coefficients(scheduler: Any, timestep: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return a and s of x_t = a·x0 + s·eps at the timesteps (B,), float32 at least, shaped to broadcast over `like`."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    if is_flow(scheduler):
        s = timestep.to(like.device, dtype) / scheduler.config.num_train_timesteps
        a, s = 1 - s, s
    else:
        alpha_bar = scheduler.alphas_cumprod.to(like.device, dtype)[timestep.to(like.device)]
        a, s = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    broadcast = (-1, *(1,) * (like.dim() - 1))
    return a.view(broadcast), s.view(broadcast)


def add_noise(scheduler: Any, x0: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
    """Return x_t (B, C, H, W) of clean x0 and noise at the timesteps (B,)."""
    if is_flow(scheduler):
        a, s = coefficients(scheduler, timestep, x0)
        return a * x0 + s * noise
    return scheduler.add_noise(x0, noise, timestep)


def described(scheduler: Any) -> list[Any]:
    """Return what noised samples and predictions mean under a scheduler, as JSON, without its sampler's settings.

    As its config says it: computed alphas differ in their last bit from one processor to the next.
    """
    if is_flow(scheduler):
        return [FLOW, scheduler.config.num_train_timesteps]
    return [str(scheduler.config.get(key)) for key in ("prediction_type", "num_train_timesteps", *BETAS)]


def same(one: Any, other: Any) -> bool:
    """Tell whether a timestep is the same noise to two schedulers."""
    if is_flow(one) or is_flow(other):
        return is_flow(one) and is_flow(other) and one.config.num_train_timesteps == other.config.num_train_timesteps
    return torch.equal(one.alphas_cumprod, other.alphas_cumprod)
