"""Multi-scale output distillation: the squared error at every level of an average-pooling pyramid.

The multiscale loss of simple diffusion (Hoogeboom, Heek, Salimans, ICML 2023, arXiv 2301.11093), with the teacher's
prediction as its target and every level weighted alike. A squared error is all high frequencies as soon as the low
ones fit; a pooled one is not.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d, avg_pool2d, avg_pool3d

from edgediff.losses.terms import KDTerms, Reduction, divisor, matched, undivided

_POOLINGS = {1: avg_pool1d, 2: avg_pool2d, 3: avg_pool3d}


def multi_scale(student: Tensor, teacher: Tensor, *, reduction: Reduction = "sum") -> KDTerms:
    """Distil with the mean over levels of the squared error between predictions pooled by 1, 2, 4, ...

    Levels go on as long as no side is shorter than the window; where windows do not divide a side, the last one is
    smaller. A pooled element stands for the elements of its window: every level counts as C · prod(spatial) elements.

    Args: student, teacher: (B, C, *spatial) predictions of the same shape, one to three spatial axes.
    Returns: the terms, as of `output`. Raises: BadInputError for unequal shapes or an unknown reduction.
    """
    ours, theirs = matched(student, teacher)
    difference = ours - theirs  # pooling is linear: that of the difference is the difference of the poolings
    pool = _POOLINGS[difference.dim() - 2]
    windows = [2**level for level in range(min(difference.shape[2:]).bit_length())]
    levels = [
        pool(difference, window, ceil_mode=True, count_include_pad=False).square().flatten(1).mean(1)
        for window in windows
    ]
    loss = torch.stack(levels).mean(0) * (difference.shape[1:].numel() / divisor(difference, reduction))
    return undivided(loss, student, teacher)
