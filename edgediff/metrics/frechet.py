"""The Fréchet distance between two sets of features (FID with Inception features; Heusel et al. 2017)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import eigh, svdvals

from edgediff.errors import BadInputError
from edgediff.metrics.checks import checked_features


class GaussianStatistics(NamedTuple):
    """A set of features as a Gaussian: mean (dim,) and unbiased covariance (dim, dim), float64."""

    mean: NDArray[np.float64]
    cov: NDArray[np.float64]


def gaussian_statistics(features: ArrayLike) -> GaussianStatistics:
    """Return mean and covariance of features (count, dim).

    Raises: BadInputError for fewer than 2 images; StageFailedError for non-finite features.
    """
    array = checked_features(features)
    mean = array.mean(axis=0)
    centred = array - mean
    return GaussianStatistics(mean, centred.T @ centred / (len(array) - 1))


def frechet_distance(stats_a: GaussianStatistics, stats_b: GaussianStatistics) -> float:
    """Return |mean_a - mean_b|² + tr(cov_a + cov_b - 2 (cov_a cov_b)^½): >= 0, 0 for equal statistics.

    Biased upwards by small samples: compare only values with the same number of images on both sides.
    Raises: BadInputError when the dimensions differ.
    """
    (mean_a, cov_a), (mean_b, cov_b) = stats_a, stats_b
    if np.shape(mean_a) != np.shape(mean_b):
        raise BadInputError(
            f"feature dimensions differ: {len(mean_a)} and {len(mean_b)}", "use one extractor for both sets of images"
        )
    # With cov_a = A Aᵀ and cov_b = B Bᵀ the trace of the square root is the sum of the singular values of AᵀB. That
    # is real and symmetric by construction, keeps full precision where the product of the covariances would square
    # rounding errors, and is the cheaper the lower the ranks (fewer images than dimensions).
    factor_a, factor_b = _factor(cov_a), _factor(cov_b)
    overlap = svdvals(factor_a.T @ factor_b).sum() if factor_a.size and factor_b.size else 0.0
    distance = np.square(np.subtract(mean_a, mean_b)).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * overlap
    return max(0.0, float(distance))


def _factor(cov: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return A (dim, rank) with A Aᵀ = cov, leaving out directions whose variance is rounding noise."""
    variances, directions = eigh(cov)
    kept = variances > variances[-1] * len(variances) * np.finfo(np.float64).eps
    return directions[:, kept] * np.sqrt(variances[kept])
