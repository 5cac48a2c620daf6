"""Feature distillation: the student's feature maps copy the teacher's (FitNets; Romero et al., ICLR 2015)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from edgediff.errors import BadInputError
from edgediff.losses.terms import Reduction, divisor, squared_error


def feature(
    student_features: Sequence[Tensor], teacher_features: Sequence[Tensor], *, reduction: Reduction = "sum"
) -> Tensor:
    """Return the squared error between feature maps: (B,), float32 at least.

    Args: student_features, teacher_features: (B, C_i, H_i, W_i) each, in the same order, of equal shapes: the
              student's after its `Adapters`. No gradient reaches the teacher's.
          reduction: "sum" over all elements of all maps, or the mean over maps of the "mean" over each map's elements.
    Raises: BadInputError for no maps, another number of them, unequal shapes, or an unknown reduction.
    """
    return over_maps(partial(squared_error, reduction=reduction), student_features, teacher_features, reduction)


def over_maps(
    distance: Callable[[Tensor, Tensor], Tensor],
    student_features: Sequence[Tensor],
    teacher_features: Sequence[Tensor],
    reduction: Reduction,
) -> Tensor:
    """Return the sum or mean (B,) over pairs of maps of their distance (B,). Raises as `feature`."""
    if not student_features or len(student_features) != len(teacher_features):
        raise BadInputError(
            f"feature losses need as many student maps as teacher maps, and at least one: "
            f"{len(student_features)} and {len(teacher_features)}",
        )
    pairs = zip(student_features, teacher_features, strict=True)
    distances = torch.stack([distance(student, teacher) for student, teacher in pairs], dim=1)
    return distances.sum(1) / divisor(distances, reduction)
