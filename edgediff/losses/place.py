"""PLACE: one linear fit per group of elements with similar error (Han, Yeo, Yoo, CVPR 2026, arXiv 2605.19729)."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from edgediff.errors import BadInputError, nearest
from edgediff.losses.fit import fit
from edgediff.losses.grouping import Grouping, order
from edgediff.losses.terms import KDTerms, Reduction, batch_mean, divisor, matched

Terms = Literal["both", "coarse", "fine"]
Norm = Literal["l1", "l2"]

MOST_LEFT_OVER = 2  # elements that are no group of their own: their fit leaves no residual, or has no slope


def place(
    student: Tensor,
    teacher: Tensor,
    *,
    group_size: int = 16,
    terms: Terms = "both",
    norm: Norm = "l1",
    grouping: Grouping = "error",
    fine_weight: Tensor | float | None = None,
    generator: torch.Generator | None = None,
    reduction: Reduction = "sum",
    eps: float = 1e-7,
) -> KDTerms:
    """Distil with a linear fit in every group of `group_size` elements of similar error.

    Per sample and channel the positions are sorted by squared error and cut into groups. Each group gives its fit of
    the teacher on the student, and with it |slope - 1| + |intercept| for each of its elements (coarse) and the squared
    residual after the fit (fine). The fine term is weighted by 1 - min(1, mean coarse error), so that it acts only as
    far as the coarse one is solved; no gradient passes through that weight, the fit inside the residual, or the sort.

    Args: student, teacher: (B, C, *spatial) predictions of the same shape; no gradient reaches the teacher.
          group_size: elements in a group, >= 1. The last group is the smaller one when this does not divide the
              number of positions; one or two that are left over, through which every line goes, join the group before.
              A group_size of the number of positions or more is LIFT.
          terms: ablation: "coarse" leaves out the fine term, "fine" the coarse one.
          norm: ablation: "l2" makes the coarse error (slope - 1)² + intercept²; the adaptive weight stays as it is.
          grouping: ablation: see `grouping.order`, which `generator` is for.
          fine_weight: None: the adaptive weight above (1 where the fine term is alone), a mean over the batches of all
              processes; else the weight itself: see `fine_weight.scheduled` and `LearnableFineWeight`.
          reduction: "sum" or "mean" over the elements of a sample.
          eps: see `fit`.
    Returns: the terms, float32 at least; finite for a constant student.
    Raises: BadInputError for unequal shapes, an unknown name, a group_size below 1, or a weight that requires a
        gradient without a fine term.
    """
    if group_size < 1:
        raise BadInputError(f"group_size must be at least 1: {group_size}", "the paper uses 16")
    for name, value, known in (("terms", terms, Terms), ("norm", norm, Norm), ("grouping", grouping, Grouping)):
        if value not in get_args(known):
            raise BadInputError(f"unknown {name}: {value}", nearest(str(value), get_args(known)))
    if terms == "coarse" and isinstance(fine_weight, Tensor) and fine_weight.requires_grad:
        raise BadInputError("the coarse term alone has no fine weight to learn", "use terms: both or fine")
    student, teacher = matched(student, teacher)
    scale = divisor(student, reduction)
    with torch.autocast(student.device.type, enabled=False):
        student, teacher, mask = _grouped(student, teacher, group_size, grouping, generator)
        slope, intercept = fit(student, teacher, eps, mask)
        distance = (slope - 1).abs() + intercept.abs()
        error = distance if norm == "l1" else (slope - 1).square() + intercept.square()
        residual = slope.detach().unsqueeze(-1) * student + (intercept.detach().unsqueeze(-1) - teacher)
        if mask is None:
            sizes: Tensor | int = student.shape[-1]
        else:
            sizes, residual = mask.sum(-1), residual * mask
        coarse = (error * sizes).flatten(1).sum(1) / scale
        fine = residual.square().flatten(1).sum(1) / scale
        if fine_weight is not None:
            weight = torch.as_tensor(fine_weight, dtype=fine.dtype, device=fine.device)
        elif terms == "fine":
            weight = fine.new_ones(())
        else:
            weight = 1 - batch_mean(distance.detach().mean()).clamp(max=1)
        total = {"both": coarse + weight * fine, "coarse": coarse, "fine": weight * fine}[terms]
    return KDTerms(total, coarse, fine, weight.detach(), slope.detach().mean(), intercept.detach().mean())


def _grouped(
    student: Tensor, teacher: Tensor, group_size: int, grouping: Grouping, generator: torch.Generator | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Cut (B, C, *spatial) into groups: (B, C, G, K) twice, and a mask (G, K) unless all groups are as large."""
    positions = student.shape[2:].numel()
    groups, last = divmod(positions, group_size)
    if last > MOST_LEFT_OVER:
        groups += 1
    else:
        last += group_size
    if groups <= 1:  # their order does not matter
        return student.flatten(2).unsqueeze(-2), teacher.flatten(2).unsqueeze(-2), None
    members, largest, mask = order(student, teacher, group_size, grouping, generator), max(last, group_size), None
    if last != group_size:
        # The missing places of smaller groups hold the first element, which is real and finite, and count for nothing.
        first = torch.arange(groups, device=members.device).unsqueeze(-1) * group_size
        place = torch.arange(largest, device=members.device)
        belongs = (place < group_size).repeat(groups, 1)
        belongs[-1] = place < last
        members = members[..., torch.where(belongs, first + place, 0)].flatten(-2)
        mask = belongs.to(student.dtype)
    student, teacher = (maps.flatten(2).gather(-1, members).unflatten(-1, (-1, largest)) for maps in (student, teacher))
    return student, teacher, mask
