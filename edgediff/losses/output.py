"""Output distillation: the student copies the teacher's prediction (OutKD; Hinton, Vinyals, Dean 2015)."""

from __future__ import annotations

from torch import Tensor

from edgediff.losses.terms import KDTerms, Reduction, squared_error, undivided


def output(student: Tensor, teacher: Tensor, *, reduction: Reduction = "sum") -> KDTerms:
    """Distil with the squared error between two predictions (B, C, *spatial).

    Returns: `total` and `fine` are the squared error, `fine_weight` 1 and `coarse` 0; slope and intercept are those
    of LIFT's fit, for the log only. Raises: BadInputError for unequal shapes or an unknown reduction.
    """
    return undivided(squared_error(student, teacher, reduction), student, teacher)
