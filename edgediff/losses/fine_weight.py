"""The weight of LIFT's and PLACE's fine term where it is not the paper's adaptive one: scheduled, or learned."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from edgediff.errors import BadInputError, nearest
from edgediff.losses.terms import KDTerms, Reduction, divisor

Schedule = Literal["fixed", "linear", "cosine"]
UNIT = 20.0


def scheduled(kind: Schedule, progress: float) -> float:
    """Return the weight at this share of the training, in [0, 1]: always 1 (fixed), or a rise from 0 to 1.

    Raises: BadInputError for an unknown kind or a progress outside [0, 1].
    """
    if not 0 <= progress <= 1:
        raise BadInputError(f"progress must be from 0 to 1: {progress}")
    if kind == "fixed":
        return 1.0
    if kind == "linear":
        return progress
    if kind == "cosine":
        return (1 - math.cos(math.pi * progress)) / 2
    raise BadInputError(f"unknown schedule: {kind}", nearest(str(kind), get_args(Schedule)))


class LearnableFineWeight(nn.Module):
    """A fine weight exp(-s) trained with the student: homoscedastic uncertainty (Kendall, Gal, Cipolla, CVPR 2018).

    Alone, the gradient could only lower a weight, to 0. The fine residuals are taken as Gaussian with variance exp(s)
    instead; the negative log-likelihood of an element, times two, is exp(-s) · residual² + s. So every element adds
    s: once in the mean over elements, as often as there are elements in the sum. The weight starts at 1 and tends to
    1 / E[residual²] under both reductions, and may exceed 1. The coarse term keeps its weight of 1: only the ratio
    of the two is free, the weight of their total is the recipe's.

    Adam moves a parameter by the learning rate a step, which suits the student's weights; s has to go from 0 to -5 or
    so within a training, so what is trained is s / UNIT.
    """

    def __init__(self) -> None:
        super().__init__()
        self.units = nn.Parameter(torch.zeros(1))  # FSDP cuts no scalars

    def forward(self, loss: Callable[..., KDTerms]) -> Callable[..., KDTerms]:
        """Return `lift` or `place`, settings bound, with this weight, and with its penalty in `total`."""

        def weighted(student: Tensor, teacher: Tensor, *, reduction: Reduction = "sum") -> KDTerms:
            units = self.units.squeeze()
            # The gradient is that of s, which clipping weighs against the student's; Adam asks for no size of it.
            log_variance = units + (UNIT - 1) * units.detach()
            terms = loss(student, teacher, reduction=reduction, fine_weight=torch.exp(-log_variance))
            elements = student.shape[1:].numel() / divisor(student, reduction)
            return terms._replace(total=terms.total + elements * log_variance)

        return weighted
