"""What one training step looks at, for teachers and students alike: a function of seed and entries."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from edgediff.data.images import Images
from edgediff.training.draws import draws


@dataclass(frozen=True)
class NoisedBatch:
    """x_t (B, C, H, W) at its timesteps (B,), and the x0 and noise that it was made of; `step` counts from 0."""

    step: int
    sample: Tensor
    timestep: Tensor
    x0: Tensor
    noise: Tensor


class Noising:
    """Turns entries of a training into noised batches: which image, how noisy, with which noise (`training.draws`).

    Everything is drawn on the CPU, so that a seed means the same batch on every device.
    """

    def __init__(self, images: Images, scheduler: DDPMScheduler, *, seed: int, device: torch.device) -> None:
        self.images, self.scheduler, self.seed, self.device = images, scheduler, seed, device

    def __call__(self, step: int, entries: Tensor) -> NoisedBatch:
        """Return the batch of the entries (B,)."""
        drawn = draws(
            entries,
            num_images=len(self.images),
            num_train_timesteps=self.scheduler.config.num_train_timesteps,
            seed=self.seed,
        )
        x0 = self.images.batch(drawn.image).to(self.device)
        noise = drawn.noise(tuple(x0.shape[1:])).to(self.device)
        timestep = drawn.timestep.to(self.device)
        return NoisedBatch(step, self.scheduler.add_noise(x0, noise, timestep), timestep, x0, noise)
