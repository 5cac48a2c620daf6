"""Masked feature distillation: massive activations left out (TinyFusion; Fang et al., CVPR 2025, arXiv 2412.01199)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from edgediff.losses.feature import over_maps
from edgediff.losses.terms import Reduction, divisor, matched


def masked_feature(
    student_features: Sequence[Tensor],
    teacher_features: Sequence[Tensor],
    *,
    reduction: Reduction = "sum",
    threshold: float = 2.0,
) -> Tensor:
    """Return `feature` over the elements that are ordinary in both maps: (B,), float32 at least.

    A few activations of deep transformers are hundreds of times larger than the rest; copying them drowns everything
    else. An element counts when it lies within `threshold` standard deviations of the mean of its sample's map, in
    the teacher and in the student. Shapes, reduction (the mean is over the elements that count) and errors are those
    of `feature`.
    """

    def distance(student: Tensor, teacher: Tensor) -> Tensor:
        student, teacher = (values.flatten(1) for values in matched(student, teacher))
        counts = _ordinary(student.detach(), threshold) & _ordinary(teacher, threshold)
        counted = counts.sum(1).clamp(min=1) if divisor(student, reduction) > 1 else 1
        return ((student - teacher) * counts).square().sum(1) / counted

    return over_maps(distance, student_features, teacher_features)


def _ordinary(values: Tensor, threshold: float) -> Tensor:
    """Return where the values (B, N) lie within `threshold` standard deviations of their row's mean."""
    deviation = values - values.mean(1, keepdim=True)
    return deviation.abs() <= threshold * deviation.square().mean(1, keepdim=True).sqrt()
