"""Output distillation: the student copies the teacher's prediction (OutKD; Hinton et al. 2015)."""

from __future__ import annotations

import torch
from torch import Tensor

from edgediff.losses.fit import fit
from edgediff.losses.terms import KDTerms, Reduction, squared_error


def output(student: Tensor, teacher: Tensor, *, reduction: Reduction = "sum") -> KDTerms:
    """Distil with the squared error between two predictions (B, C, *spatial).

    Returns: `fine` is the squared error, `fine_weight` 1 and `coarse` 0; slope and intercept are those of LIFT's fit,
    for the log only. Raises: BadInputError for unequal shapes or an unknown reduction.
    """
    fine = squared_error(student, teacher, reduction)
    with torch.no_grad():
        slope, intercept = fit(student.flatten(2), teacher.flatten(2))
    zero, one = torch.zeros_like(fine), torch.ones_like(fine)
    return KDTerms(fine, zero, fine, one, slope.mean(), intercept.mean())
