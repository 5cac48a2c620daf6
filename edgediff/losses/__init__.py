"""Distillation and diffusion losses: one file an idea, one registry of the distillation losses by recipe name.

`KD` maps the recipe's names to callables of one signature; `None` says that no teacher forward is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from edgediff.losses.diffusion import diffusion
from edgediff.losses.fit import fit
from edgediff.losses.lift import lift
from edgediff.losses.output import output
from edgediff.losses.place import place
from edgediff.losses.terms import KDTerms, Reduction, squared_error


class KDLoss(Protocol):
    """A distillation loss as the training loop calls it, whatever its name."""

    def __call__(self, student: Tensor, teacher: Tensor, *, group_size: int, reduction: Reduction) -> KDTerms:
        """Compare predictions (B, C, *spatial); `group_size` in elements, ignored by losses without groups."""


def _ungrouped(loss: Callable[..., KDTerms]) -> KDLoss:
    """Give a loss without groups the registry's signature."""

    def call(student: Tensor, teacher: Tensor, *, group_size: int, reduction: Reduction) -> KDTerms:
        return loss(student, teacher, reduction=reduction)

    return call


KD: dict[str, KDLoss | None] = {
    "none": None,
    "output": _ungrouped(output),
    "lift": _ungrouped(lift),
    "place": place,
}

__all__ = ["KD", "KDLoss", "KDTerms", "Reduction", "diffusion", "fit", "lift", "output", "place", "squared_error"]
