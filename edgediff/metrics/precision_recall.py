"""Improved precision and recall: fidelity and coverage told apart (Kynkäänniemi et al. 2019)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgediff.metrics.checks import checked_pair

CHUNK = 1024  # rows of the distance matrix held at once


def precision_recall(real: ArrayLike, generated: ArrayLike, *, k: int = 3) -> tuple[float, float]:
    """Return the shares of generated images inside the real manifold, and of real images inside the generated one.

    A manifold is the union of balls around its images that reach to each one's k-th nearest neighbour.

    Args: real, generated: features (count, dim), more than k images each. k: 3 in the paper, >= 1.
    Returns: precision, recall in [0, 1]; both depend on the counts, so compare equal counts only.
    Raises: BadInputError for k images or fewer, or unequal dimensions; StageFailedError for non-finite features.
    """
    real, generated = checked_pair(real, generated, minimum=k + 1)
    return _share_inside(generated, real, k), _share_inside(real, generated, k)


def _share_inside(queries: NDArray[np.float64], manifold: NDArray[np.float64], k: int) -> float:
    """Share of the queries inside at least one ball of the manifold."""
    # An image's smallest distance is the one to itself, so index k is the k-th neighbour.
    radii = np.concatenate([np.partition(rows, k, axis=1)[:, k] for rows in _distance_rows(manifold, manifold)])
    return float(np.concatenate([(rows <= radii).any(axis=1) for rows in _distance_rows(queries, manifold)]).mean())


def _distance_rows(a: NDArray[np.float64], b: NDArray[np.float64]) -> Iterator[NDArray[np.float64]]:
    """Yield the squared distances from `CHUNK` rows of a at a time to all of b: (rows, len(b))."""
    norms = np.square(b).sum(axis=1)
    for start in range(0, len(a), CHUNK):
        rows = a[start : start + CHUNK]
        yield np.maximum(np.square(rows).sum(axis=1)[:, None] + norms - 2 * rows @ b.T, 0)
