"""What a measure of blocks may look at: the weights, and what the model makes of calibration images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from edgediff.diffusion import schedule
from edgediff.errors import StageFailedError
from edgediff.families import Config, Family
from edgediff.pruning.importance import denoising_loss

TIMESTEPS = 8  # from the cleanest to the noisiest; blocks differ far more than neighbouring timesteps do


@dataclass(frozen=True)
class Calibration:
    """Clean images and the one noise that serves all timesteps, so that measurements compare.

    Args: x0: (B, C, H, W) in [-1, 1], or latents. scheduler: the teacher's. conditioning: a row an image.
    """

    family: Family
    x0: Tensor
    scheduler: Any
    conditioning: Mapping[str, Tensor] = field(default_factory=dict)
    seed: int = 0

    def timesteps(self) -> list[int]:
        """Return the timesteps at which is measured, cleanest first."""
        count = min(TIMESTEPS, self.scheduler.config.num_train_timesteps)
        return schedule.spread(self.scheduler, count).tolist()

    def loss(self, model: nn.Module, timestep: int) -> Tensor:
        """Return the denoising loss (scalar) at a timestep."""
        return denoising_loss(self.family, self.x0, self.scheduler, self.seed, self.conditioning)(model, timestep)

    def prediction(self, model: nn.Module, timestep: int) -> Tensor:
        """Return the model's prediction (B, C, H, W) of the noised images."""
        device = next(model.parameters()).device
        noise = torch.randn(self.x0.shape, generator=torch.Generator().manual_seed(self.seed))
        timesteps = torch.full((len(self.x0),), timestep)
        sample = schedule.add_noise(self.scheduler, self.x0.float(), noise, timesteps).to(device)
        rows = {name: value.to(device) for name, value in self.conditioning.items()}
        return self.family.prediction(model, sample, timesteps.to(device), **rows)


@dataclass(frozen=True)
class BlockProbe:
    """A model's blocks, under a measure.

    Args: model: in float32 and evaluation mode; None where weights are not looked at.
          calibration: for measures that need images.
          count: how many blocks will go, for choices that depend on it.
          seed: of `random`.
          on_step: called after every measurement.
    """

    family: Family
    config: Config
    model: ModelMixin | None = None
    calibration: Calibration | None = None
    count: int = 0
    seed: int = 0
    on_step: Callable[[], None] = lambda: None

    @property
    def blocks(self) -> tuple[str, ...]:
        """The removable blocks, in the order in which they run."""
        return self.family.blocks(self.config)

    def each(self) -> Iterator[str]:
        """Yield the blocks, and tell `on_step` when each has been measured."""
        for block in self.blocks:
            yield block
            self.on_step()

    def weights(self) -> ModelMixin:
        """Return the model, which whoever asks for a measure of weights has given."""
        assert self.model is not None
        return self.model

    def images(self) -> Calibration:
        """Return the calibration images, which whoever asks for a measure of images has given."""
        assert self.calibration is not None
        return self.calibration


def finite(value: float, block: str) -> float:
    """Return the value.

    Raises: StageFailedError naming the block when it is not finite.
    """
    if not -float("inf") < value < float("inf"):
        raise StageFailedError(
            f"importance of {block} is not finite: {value}", "check the teacher's weights and the calibration images"
        )
    return value
