"""Feature distillation: the student's feature maps copy the teacher's (FitNets; Romero et al., ICLR 2015).

Maps are added up, as in BK-SDM (Kim et al., ECCV 2024, arXiv 2305.15798): each is a task of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from edgediff.errors import BadInputError
from edgediff.losses.terms import Reduction, squared_error


def feature(
    student_features: Sequence[Tensor], teacher_features: Sequence[Tensor], *, reduction: Reduction = "sum"
) -> Tensor:
    """Return the squared error between feature maps: (B,), float32 at least.

    Args: student_features, teacher_features: (B, C_i, H_i, W_i) each, in the same order, of equal shapes: the
              student's after its `Adapters`. No gradient reaches the teacher's.
          reduction: the sum over maps of the "sum" or the "mean" over each map's elements.
    Raises: BadInputError for no maps, another number of them, unequal shapes, or an unknown reduction.
    """
    return over_maps(partial(squared_error, reduction=reduction), student_features, teacher_features)


def over_maps(
    distance: Callable[[Tensor, Tensor], Tensor],
    student_features: Sequence[Tensor],
    teacher_features: Sequence[Tensor],
) -> Tensor:
    """Return the sum over pairs of maps of their distance (B,). Raises as `feature`."""
    if not student_features or len(student_features) != len(teacher_features):
        raise BadInputError(
            f"feature losses need as many student maps as teacher maps, and at least one: "
            f"{len(student_features)} and {len(teacher_features)}",
        )
    pairs = zip(student_features, teacher_features, strict=True)
    return torch.stack([distance(student, teacher) for student, teacher in pairs]).sum(0)
