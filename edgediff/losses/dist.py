"""DIST: the student's predictions correlate with the teacher's (Huang et al., NeurIPS 2022, arXiv 2205.10536)."""

from __future__ import annotations

import torch
from torch import Tensor

from edgediff.losses.terms import KDTerms, Reduction, divisor, matched, undivided


def dist(student: Tensor, teacher: Tensor, *, reduction: Reduction = "sum", eps: float = 1e-7) -> KDTerms:
    """Distil with 1 - Pearson correlation, which is blind to the scale and offset of predictions.

    The inter-relation is taken over the positions of every sample and channel, the intra-relation over the batch at
    every element; both enter as means with weight 1. The intra-relation belongs to the process's whole batch (alone
    in it, a sample correlates with nothing) and is every sample's alike. The sum reduction counts the mean relation
    for each of the C · prod(spatial) elements.

    Args: student, teacher: (B, C, *spatial) predictions of the same shape.
          eps: added to every variance, as in `fit`: a constant map has correlation 0 and a finite gradient.
    Returns: the terms, as of `output`; per element in [0, 4]. Raises: BadInputError for unequal shapes or an unknown
    reduction.
    """
    ours, theirs = matched(student, teacher)
    inter = 1 - _correlation(ours.flatten(2), theirs.flatten(2), -1, eps).mean(1)
    intra = 1 - _correlation(ours.flatten(1), theirs.flatten(1), 0, eps).mean()
    loss = (inter + intra) * (ours.shape[1:].numel() / divisor(ours, reduction))
    return undivided(loss, student, teacher)


def _correlation(one: Tensor, other: Tensor, axis: int, eps: float) -> Tensor:
    """Return Pearson's correlation along an axis, in [-1, 1]."""
    one, other = one - one.mean(axis, keepdim=True), other - other.mean(axis, keepdim=True)
    scales = torch.sqrt((one.square().mean(axis) + eps) * (other.square().mean(axis) + eps))
    return (one * other).mean(axis) / scales
