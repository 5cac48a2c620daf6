"""Classifier-free guidance: a Denoiser made of one that was also trained without its conditioning."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from edgediff.diffusion.denoiser import Denoiser


def forwards(conditional: bool, scale: float) -> int:
    """Return how many forwards of a model one step of sampling takes."""
    return 2 if conditional and scale != 1 else 1


class Guided:
    """Predicts u + scale · (c - u) from the predictions with conditioning, c, and without, u (Ho & Salimans 2022).

    Both come from one forward of twice the batch. A `Denoiser`, so whatever samples, times or compares takes it.
    """

    def __init__(self, denoiser: Denoiser, scale: float, unconditional: Callable[[int], Mapping[str, Tensor]]) -> None:
        """Take the rows (B, ...) that stand for no conditioning as a function of B."""
        self.denoiser, self.scale, self.unconditional = denoiser, scale, unconditional
        self.backend, self.device, self.precision = denoiser.backend, denoiser.device, denoiser.precision

    def __call__(self, sample: Tensor, timestep: Tensor, **conditioning: Tensor) -> Tensor:
        """See `Denoiser`."""
        nothing = self.unconditional(len(sample))
        # What is told of the picture's frame (SDXL) holds with and without a caption.
        both = {name: torch.cat([nothing.get(name, rows), rows]) for name, rows in conditioning.items()}
        without, given = self.denoiser(torch.cat([sample] * 2), torch.cat([timestep] * 2), **both).chunk(2)
        return without + self.scale * (given - without)
