"""Kernel Inception distance: unbiased, so fair to small sets of images (Bińkowski et al. 2018)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgediff.errors import BadInputError
from edgediff.metrics.checks import checked_pair


def kid(
    features_a: ArrayLike, features_b: ArrayLike, *, subset_size: int = 1000, num_subsets: int = 100, seed: int = 0
) -> tuple[float, float]:
    """Return mean and standard deviation over subsets of the squared MMD with the kernel (x·y / dim + 1)³.

    Args: features_a, features_b: (count, dim), of the same extractor.
          subset_size: images drawn without replacement from each side for one estimate, 2..smaller count.
          num_subsets: estimates, >= 1. seed: of the draws; the same seed gives the same value.
    Returns: kid_mean, around 0 (and so sometimes below) for equal distributions; kid_std, population.
    Raises: BadInputError for a subset_size out of range, num_subsets below 1, or unequal dimensions.
    """
    a, b = checked_pair(features_a, features_b)
    smaller = min(len(a), len(b))
    if not 2 <= subset_size <= smaller:
        raise BadInputError(f"subset_size out of range: {subset_size}", f"use 2 to {smaller}, or more images")
    if num_subsets < 1:
        raise BadInputError(f"num_subsets must be at least 1: {num_subsets}", "100 is usual")
    generator = np.random.default_rng(seed)
    values = [
        _squared_mmd(
            a[generator.choice(len(a), subset_size, replace=False)],
            b[generator.choice(len(b), subset_size, replace=False)],
        )
        for _ in range(num_subsets)
    ]
    return float(np.mean(values)), float(np.std(values))


def _squared_mmd(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Unbiased estimate from two sets of the same size: an element is never compared with itself."""
    size = len(a)
    within_a, within_b = _kernel(a, a), _kernel(b, b)
    within = within_a.sum() - np.trace(within_a) + within_b.sum() - np.trace(within_b)
    return float(within / (size * (size - 1)) - 2 * _kernel(a, b).mean())


def _kernel(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    similarity = a @ b.T / a.shape[1] + 1
    return similarity * similarity * similarity  # an order of magnitude faster than a general power
