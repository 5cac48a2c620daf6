"""What every distillation loss returns, how every loss here is reduced, and what several processes share."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, distributed

from edgediff.errors import BadInputError, nearest
from edgediff.losses.fit import fit

Reduction = Literal["sum", "mean"]  # over the elements of one sample; the mean over the batch is the caller's


class KDTerms(NamedTuple):
    """A prediction loss and its parts.

    Differentiable, one value a sample, (B,): `total` is `coarse` + `fine_weight` · `fine`, or the one of them that an
    ablation leaves, plus the penalty of a learnable weight; all reduced over the sample's elements.
    Detached scalars, for the log: `fine_weight`, and `slope` and `intercept`, the means of the linear fit over all
    groups of the batch (1 and 0 for a perfect student).
    """

    total: Tensor
    coarse: Tensor
    fine: Tensor
    fine_weight: Tensor
    slope: Tensor
    intercept: Tensor


def undivided(loss: Tensor, student: Tensor, teacher: Tensor) -> KDTerms:
    """Return the terms of a loss (B,) without a coarse part, with LIFT's fit of the predictions for the log."""
    with torch.no_grad():
        slope, intercept = fit(student.flatten(2), teacher.flatten(2))
    return KDTerms(loss, torch.zeros_like(loss), loss, loss.new_ones(()), slope.mean(), intercept.mean())


def divisor(values: Tensor, reduction: Reduction) -> int:
    """Return what a sum over one sample's elements of `values` (B, ...) is divided by: 1, or their number.

    Raises: BadInputError for an unknown reduction.
    """
    if reduction == "sum":
        return 1
    if reduction == "mean":
        return values.shape[1:].numel()
    raise BadInputError(f"unknown reduction: {reduction}", nearest(str(reduction), get_args(Reduction)))


def full_precision(values: Tensor) -> Tensor:
    """Return the values in float32 at least; float64 stays float64."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def matched(student: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return both in their common dtype, float32 at least, with no gradient to the target.

    Raises BadInputError when the shapes differ, which would otherwise broadcast into a wrong loss.
    """
    if student.shape != target.shape:
        raise BadInputError(
            f"student and target shapes differ: {tuple(student.shape)} and {tuple(target.shape)}",
            "the two must hold the same quantity with the same number of channels",
        )
    dtype = torch.promote_types(torch.promote_types(student.dtype, target.dtype), torch.float32)
    return student.to(dtype), target.detach().to(dtype)


def squared_error(student: Tensor, target: Tensor, reduction: Reduction) -> Tensor:
    """Return the reduced squared error of two tensors (B, ...): (B,), float32 at least, >= 0."""
    student, target = matched(student, target)
    return (student - target).square().flatten(1).sum(1) / divisor(student, reduction)


def batch_sum(value: Tensor) -> Tensor:
    """Return the sum of a detached tensor over all processes of `torch.distributed`; itself when there is only one."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return value
    total = value.clone()
    distributed.all_reduce(total)
    return total


def batch_mean(value: Tensor) -> Tensor:
    """Return the mean of a detached tensor over all processes, each of which holds an equal share of the batch."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return value
    return batch_sum(value) / distributed.get_world_size()  # gloo knows no averaging
