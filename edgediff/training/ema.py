"""Exponential moving average of a model's parameters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from edgediff.training.sharding import whole


class EMA:
    """Averages parameters with a decay that grows to `decay` as (1 + step) / (10 + step), as in the DDPM code's users.

    The growth lets a short run forget its initial weights; after 10 / (1 - decay) steps it makes no difference.
    Of a model that FSDP has cut, every process averages its own pieces.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.current = dict(model.named_parameters())
        self.average: dict[str, Tensor] = {name: value.detach().clone() for name, value in self.current.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average towards the model's parameters after optimiser step `step` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.average.values()), list(self.current.values()), 1 - decay)

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Overwrite the parameters of a model that is not cut with the average."""
        for name, parameter in model.named_parameters():
            parameter.copy_(whole(self.average[name]))

    @contextmanager
    def inside(self, model: nn.Module) -> Iterator[None]:
        """Have the average in a model that is not cut within the block, and its own parameters again after it."""
        own = [parameter.detach().clone() for parameter in model.parameters()]
        self.copy_to(model)
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, value in zip(model.parameters(), own, strict=True):
                    parameter.copy_(value)
