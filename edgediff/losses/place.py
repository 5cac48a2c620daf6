"""PLACE: one linear fit per group of elements with similar error (Han, Yeo, Yoo, CVPR 2026, arXiv 2605.19729)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from edgediff.errors import BadInputError
from edgediff.losses.fit import fit
from edgediff.losses.terms import KDTerms, Reduction, divisor, matched


def place(
    student: Tensor, teacher: Tensor, *, group_size: int = 16, reduction: Reduction = "sum", eps: float = 1e-7
) -> KDTerms:
    """Distil with a linear fit in every group of `group_size` elements of similar error.

    Per sample and channel the positions are sorted by squared error and cut into groups. Each group gives its fit of
    the teacher on the student, and with it |slope - 1| + |intercept| for each of its elements (coarse) and the squared
    residual after the fit (fine). The fine term is weighted by 1 - min(1, mean coarse error), so that it acts only as
    far as the coarse one is solved; no gradient passes through that weight, the fit inside the residual, or the sort.

    Args: student, teacher: (B, C, *spatial) predictions of the same shape; no gradient reaches the teacher.
          group_size: elements in a group, >= 1. The last group is the smaller one when this does not divide the
              number of positions; a group_size of that number or more is LIFT.
          reduction: "sum" over elements and mean over the batch, or "mean" over everything.
          eps: see `fit`.
    Returns: the terms, float32 at least; finite for a constant student.
    Raises: BadInputError for unequal shapes, an unknown reduction, or a group_size below 1.
    """
    if group_size < 1:
        raise BadInputError(f"group_size must be at least 1: {group_size}", "the paper uses 16")
    student, teacher = matched(student, teacher)
    scale = divisor(student, reduction)
    with torch.autocast(student.device.type, enabled=False):
        student, teacher, mask = _grouped(student.flatten(2), teacher.flatten(2), group_size)
        slope, intercept = fit(student, teacher, eps, mask)
        error = (slope - 1).abs() + intercept.abs()
        residual = slope.detach().unsqueeze(-1) * student + (intercept.detach().unsqueeze(-1) - teacher)
        if mask is None:
            coarse = error.sum() * (student.shape[-1] / scale)
        else:
            coarse = (error * mask.sum(-1)).sum() / scale
            residual = residual * mask
        fine = residual.square().sum() / scale
        fine_weight = 1 - error.detach().mean().clamp(max=1)
        total = coarse + fine_weight * fine
    return KDTerms(total, coarse, fine, fine_weight, slope.detach().mean(), intercept.detach().mean())


def _grouped(student: Tensor, teacher: Tensor, group_size: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Cut (B, C, N) into groups of similar error: (B, C, G, K) twice, and a mask (G, K) if the last group is short."""
    positions = student.shape[-1]
    if group_size >= positions:  # one group: its order does not matter
        return student.unsqueeze(-2), teacher.unsqueeze(-2), None
    order = (teacher - student.detach()).square().argsort(dim=-1)
    short_by = -positions % group_size
    mask = None
    if short_by:
        # The missing places of the last group hold element 0, which is real and finite, and count for nothing.
        mask = pad(student.new_ones(positions), (0, short_by)).unflatten(-1, (-1, group_size))
        order = pad(order, (0, short_by))
    groups = (-1, group_size)
    return student.gather(-1, order).unflatten(-1, groups), teacher.gather(-1, order).unflatten(-1, groups), mask
