"""What every distillation loss returns, and how every loss here is reduced."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from edgediff.errors import BadInputError, nearest

Reduction = Literal["sum", "mean"]


class KDTerms(NamedTuple):
    """A distillation loss and its parts, every one a scalar tensor.

    Differentiable: `total` = `coarse` + `fine_weight` · `fine`; all three already reduced.
    Detached, for the log: `fine_weight` in [0, 1], and `slope` and `intercept`, the means of the linear fit over
    all groups (1 and 0 for a perfect student).
    """

    total: Tensor
    coarse: Tensor
    fine: Tensor
    fine_weight: Tensor
    slope: Tensor
    intercept: Tensor


def divisor(prediction: Tensor, reduction: Reduction) -> int:
    """Return what a sum over all elements of `prediction` (B, ...) is divided by.

    `sum` keeps the sum over elements and averages over the batch (the paper's pixel-space setting): B.
    `mean` averages over elements too (latent models): the number of elements.
    """
    if reduction == "sum":
        return prediction.shape[0]
    if reduction == "mean":
        return prediction.numel()
    raise BadInputError(f"unknown reduction: {reduction}", nearest(str(reduction), get_args(Reduction)))


def matched(student: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return both in their common dtype, float32 at least, with no gradient to the target.

    Raises BadInputError when the shapes differ, which would otherwise broadcast into a wrong loss.
    """
    if student.shape != target.shape:
        raise BadInputError(
            f"student and target shapes differ: {tuple(student.shape)} and {tuple(target.shape)}",
            "the two must predict the same quantity with the same number of channels",
        )
    dtype = torch.promote_types(torch.promote_types(student.dtype, target.dtype), torch.float32)
    return student.to(dtype), target.detach().to(dtype)


def squared_error(student: Tensor, target: Tensor, reduction: Reduction) -> Tensor:
    """Return the reduced squared error of two tensors (B, ...): a scalar, float32 at least, >= 0."""
    student, target = matched(student, target)
    return (student - target).square().sum() / divisor(student, reduction)
