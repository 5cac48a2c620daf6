"""Which image, how noisy, with which noise: what a batch is made of, before any model sees it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edgediff.data.order import mixed, visited

# Streams of one seed that must not meet: counters of entries start here.
NOISE_STREAM, TIMESTEP_STREAM = 2**33, 2**34


@dataclass(frozen=True)
class Draws:
    """Image indices (B,), noise seeds (B) and timesteps (B,) int64 of a batch."""

    image: Tensor
    noise_seed: list[int]
    timestep: Tensor

    def noise(self, shape: tuple[int, ...]) -> Tensor:
        """Return the noise (B, *shape) of N(0, 1), drawn on the CPU so that a seed means the same on every device."""
        drawn = torch.empty(len(self.noise_seed), *shape)
        for row, seed in zip(drawn, self.noise_seed, strict=True):
            row.normal_(generator=torch.Generator().manual_seed(seed))
        return drawn


def draws(entries: Tensor, *, num_images: int, num_train_timesteps: int, seed: int) -> Draws:
    """Return what the entries (B,) of a training with `seed` are made of: a pure function of each entry.

    Images follow fresh permutations, every one with new noise. Entries 2p and 2p + 1 have the timesteps t and T-1-t,
    which lowers the variance of the loss (antithetic timesteps, as in the DDIM code; Song et al. 2021).
    """
    last = num_train_timesteps - 1
    numbers = entries.tolist()
    drawn = [mixed(seed, TIMESTEP_STREAM + number // 2) % num_train_timesteps for number in numbers]
    return Draws(
        image=visited(entries, count=num_images, seed=seed),
        noise_seed=[mixed(seed, NOISE_STREAM + number) for number in numbers],
        timestep=torch.tensor([last - t if number % 2 else t for number, t in zip(numbers, drawn, strict=True)]),
    )
