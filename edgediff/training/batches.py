"""What one training step looks at, for teachers and students alike: a function of seed and entries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edgediff.data.order import mixed
from edgediff.diffusion import schedule
from edgediff.recipe import DataConfig
from edgediff.samples import Samples
from edgediff.training.draws import draws

# Which entries are told nothing, which are told of another image, and of which; shares are counted in PARTS.
DROPPED_STREAM, EXCHANGED_STREAM, OTHERS_STREAM, PARTS = 2**36, 2**37, 2**38, 10_000
LATENT_STREAM = 2**39  # which sample of an image's latents


@dataclass(frozen=True)
class NoisedBatch:
    """x_t (B, C, H, W) at its timesteps (B,), and the x0 and noise that it was made of; `step` counts from 0.

    `conditioning` holds the other arguments of the model's forward, by name: one row a sample. `exchanged` (B,) bool
    tells which of them belong to other images than x0; None: none.
    """

    step: int
    sample: Tensor
    timestep: Tensor
    x0: Tensor
    noise: Tensor
    conditioning: Mapping[str, Tensor]
    exchanged: Tensor | None = None


TOLD = {"conditioning_dropout", "random_conditioning"}  # the data's settings that noised batches depend on


class Noising:
    """Turns entries of a training into noised batches: which image, how noisy, with which noise (`training.draws`).

    Everything is drawn on the CPU, so that a seed means the same batch on every device.
    """

    def __init__(
        self, samples: Samples, scheduler: Any, config: DataConfig, *, seed: int, device: torch.device
    ) -> None:
        """Take what is learned from; `config` says how conditioning is dropped and exchanged."""
        self.samples, self.scheduler, self.seed, self.device = samples, scheduler, seed, device
        self.dropped, self.exchanged = config.conditioning_dropout, config.random_conditioning

    def __call__(self, step: int, entries: Tensor) -> NoisedBatch:
        """Return the batch of the entries (B,)."""
        drawn = draws(
            entries,
            num_images=len(self.samples),
            num_train_timesteps=self.scheduler.config.num_train_timesteps,
            seed=self.seed,
        )
        seeds = [mixed(self.seed, LATENT_STREAM + entry) for entry in entries.tolist()]
        x0 = self.samples.drawn(drawn.image, seeds).to(self.device)
        noise = drawn.noise(tuple(x0.shape[1:])).to(self.device)
        timestep = (drawn.timestep + schedule.cleanest(self.scheduler)).to(self.device)
        told, exchanged = self._told(entries, drawn.image)
        conditioning = {name: rows.to(self.device) for name, rows in told.items()}
        sample = schedule.add_noise(self.scheduler, x0, noise, timestep)
        return NoisedBatch(step, sample, timestep, x0, noise, conditioning, exchanged)

    def _told(self, entries: Tensor, images: Tensor) -> tuple[dict[str, Tensor], Tensor | None]:
        """Return the conditioning of the images (B,), of some entries something else, of some nothing; and of which
        something else (B,) bool, None where that is asked of none.
        """
        told, exchanged = self.samples.conditioning(images), None
        if self.exchanged and self.samples.others is not None:
            exchanged = self._share(entries, EXCHANGED_STREAM, self.exchanged)
            others = [mixed(self.seed, OTHERS_STREAM + entry) % len(self.samples.others) for entry in entries.tolist()]
            _put(told, exchanged, self.samples.others(torch.tensor(others)))
        if told and self.dropped:
            silent = self._share(entries, DROPPED_STREAM, self.dropped)
            _put(told, silent, self.samples.unconditional(1))
            exchanged = None if exchanged is None else exchanged & ~silent  # x0 is an example of nothing asked for
        return told, None if exchanged is None else exchanged.to(self.device)

    def _share(self, entries: Tensor, stream: int, share: float) -> Tensor:
        """Return which of the entries (B,) belong to a share of all, drawn for each of them once."""
        return torch.tensor([mixed(self.seed, stream + entry) % PARTS < share * PARTS for entry in entries.tolist()])


def _put(told: dict[str, Tensor], where: Tensor, values: Mapping[str, Tensor]) -> None:
    """Replace conditioning (B, ...) by other values, (B, ...) or (1, ...), at the samples `where` (B,) says so."""
    for name, rows in values.items():
        told[name] = torch.where(where.view(-1, *(1,) * (rows.dim() - 1)), rows, told[name])
