"""The least-squares line that maps a student's values onto its teacher's."""

from __future__ import annotations

import torch
from torch import Tensor


def fit(student: Tensor, teacher: Tensor, eps: float = 1e-7, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Fit the teacher on the student by ordinary least squares, per group (LIFT; Han et al. 2026).

    slope = cov(S, T) / (var(S) + eps), intercept = mean(T) - slope · mean(S), with population moments. Runs in
    float32 at least, under autocast too; float64 stays float64.

    Args: student, teacher: (..., K) predictions, same shape; every group is one row of the last axis.
          eps: added to the variance, so that a constant student has slope 0 rather than a division by zero.
          mask: broadcastable to (..., K), 1 where the element belongs to the group and 0 where it does not.
    Returns: slope, intercept: (...,), differentiable, dimensionless; 1 and 0 for identical inputs.
    """
    with torch.autocast(student.device.type, enabled=False):
        dtype = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
        student, teacher = student.to(dtype), teacher.to(dtype)
        student_mean, teacher_mean = _mean(student, mask), _mean(teacher, mask)
        # Moments of the centred values: E[ST] - E[S]E[T] would cancel in float32.
        student_centred, teacher_centred = student - student_mean, teacher - teacher_mean
        slope = _mean(student_centred * teacher_centred, mask) / (_mean(student_centred.square(), mask) + eps)
        intercept = teacher_mean - slope * student_mean
    return slope.squeeze(-1), intercept.squeeze(-1)


def _mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of each group, kept as an axis of length 1."""
    if mask is None:
        return values.sum(-1, keepdim=True) / values.shape[-1]  # backward of `mean` divides every element, not groups
    return (values * mask).sum(-1, keepdim=True) / mask.sum(-1, keepdim=True)
