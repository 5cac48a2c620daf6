"""The data term: the prediction against the target of its own prediction type (Ho et al. 2020)."""

from __future__ import annotations

from torch import Tensor

from edgediff.losses.terms import Reduction, squared_error


def diffusion(student: Tensor, target: Tensor, *, reduction: Reduction = "sum") -> Tensor:
    """Return the squared error of the student's prediction (B, C, *spatial) against eps, v or the flow velocity.

    Returns: (B,). Raises: BadInputError for unequal shapes or an unknown reduction.
    """
    return squared_error(student, target, reduction)
