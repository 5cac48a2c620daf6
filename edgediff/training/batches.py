"""What one training step looks at, for teachers and students alike: a function of seed and step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from edgediff.data.images import Images
from edgediff.data.order import batch_indices
from edgediff.diffusion.noising import antithetic_timesteps, prediction_target
from edgediff.recipe import TrainingConfig


@dataclass(frozen=True)
class NoisedBatch:
    """x_t (B, C, H, W), its timesteps (B,), and what a model should predict from them (B, C, H, W)."""

    sample: Tensor
    timestep: Tensor
    target: Tensor


def noised_batch(
    step: int,
    generator: torch.Generator,
    *,
    images: Images,
    scheduler: DDPMScheduler,
    config: TrainingConfig,
    device: torch.device,
) -> NoisedBatch:
    """Return the batch of training step `step`, with antithetic timesteps.

    Everything is drawn on the CPU, so that a seed means the same batch on every device.
    """
    indices = batch_indices(step, num_images=len(images), batch_size=config.batch_size, seed=config.seed)
    x0 = images.batch(indices)
    noise = torch.randn(x0.shape, generator=generator)
    timestep = antithetic_timesteps(len(x0), scheduler.config.num_train_timesteps, generator)
    x0, noise, timestep = x0.to(device), noise.to(device), timestep.to(device)
    return NoisedBatch(
        scheduler.add_noise(x0, noise, timestep), timestep, prediction_target(scheduler, x0, noise, timestep)
    )
