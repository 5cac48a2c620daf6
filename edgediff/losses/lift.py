"""LIFT: one linear fit per sample and channel (Han, Yeo, Yoo, CVPR 2026, arXiv 2605.19729)."""

from __future__ import annotations

from torch import Tensor

from edgediff.losses.place import Norm, Terms, place
from edgediff.losses.terms import KDTerms, Reduction


def lift(
    student: Tensor,
    teacher: Tensor,
    *,
    terms: Terms = "both",
    norm: Norm = "l1",
    fine_weight: Tensor | float | None = None,
    reduction: Reduction = "sum",
    eps: float = 1e-7,
) -> KDTerms:
    """Distil with one fit per channel map: `place` with a single group. Shapes, returns and errors as there."""
    return place(
        student,
        teacher,
        group_size=student.shape[2:].numel(),
        terms=terms,
        norm=norm,
        fine_weight=fine_weight,
        reduction=reduction,
        eps=eps,
    )
