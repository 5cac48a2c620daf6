"""The order in which training visits images, as a pure function of seed and step, so that resuming needs no state."""

from __future__ import annotations

import torch
from torch import Tensor


def batch_indices(step: int, *, num_images: int, batch_size: int, seed: int) -> Tensor:
    """Return the image indices (batch_size,) of training step `step` (from 0).

    Every epoch is a fresh permutation drawn from (seed, epoch); batches run on across the border of two epochs, so
    that every image is seen equally often.
    """
    first = step * batch_size
    positions = torch.arange(first, first + batch_size)
    epochs = positions // num_images
    indices = torch.empty(batch_size, dtype=torch.long)
    for epoch in epochs.unique().tolist():
        generator = torch.Generator().manual_seed(_mix(seed, epoch))
        permutation = torch.randperm(num_images, generator=generator)
        inside = epochs == epoch
        indices[inside] = permutation[positions[inside] % num_images]
    return indices


def evenly(total: int, count: int) -> Tensor:
    """Return `count` indices spread from the first to the last of `total`; all of them when there are fewer."""
    return torch.linspace(0, total - 1, min(count, total)).long()


def step_generator(seed: int, step: int) -> torch.Generator:
    """Return the CPU random generator of one training step, a function of (seed, step) alone."""
    return torch.Generator().manual_seed(_mix(seed, step + 2**32))


def _mix(seed: int, counter: int) -> int:
    """Spread (seed, counter) over 63 bits, because torch's generator gives correlated streams for close seeds."""
    value = (seed * 0x9E3779B97F4A7C15 + counter * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) & (2**64 - 1)
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
    return (value ^ (value >> 31)) >> 1
