"""The refusals that all metrics share, and how much they take at once."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from edgediff.errors import BadInputError, StageFailedError

MOST_AT_ONCE, PIXELS_AT_ONCE = 256, 2**20  # images that are measured at once: about half a gigabyte while it lasts
RANGE_TOLERANCE = 1e-3  # rounding of a resize or of a half-precision cast, far below one of 256 grey levels (8e-3)


def at_once(shape: tuple[int, ...]) -> int:
    """Return how many images (..., H, W) are measured at once, because measures take many times their bytes."""
    return max(1, min(MOST_AT_ONCE, PIXELS_AT_ONCE // (shape[-2] * shape[-1])))


def checked_features(features: ArrayLike, minimum: int = 2) -> NDArray[np.float64]:
    """Return features (count, dim) in float64.

    Raises: BadInputError for another shape or fewer than `minimum` images; StageFailedError for non-finite features.
    """
    array = np.asarray(features, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] < 1:
        raise BadInputError(f"features must have shape (images, dim): {array.shape}", "pass one row per image")
    if array.shape[0] < minimum:
        raise BadInputError(f"too few images for this metric: {array.shape[0]}", f"use at least {minimum} images")
    broken = int((~np.isfinite(array)).any(axis=1).sum())
    if broken:
        raise StageFailedError(
            f"features of {broken} of {len(array)} images are not finite", "check the images for NaN and infinity"
        )
    return array


def checked_pair(features_a: ArrayLike, features_b: ArrayLike, minimum: int = 2) -> tuple[NDArray, NDArray]:
    """Return both sets of features in float64; also BadInputError when their dimensions differ."""
    a, b = checked_features(features_a, minimum), checked_features(features_b, minimum)
    if a.shape[1] != b.shape[1]:
        raise BadInputError(
            f"feature dimensions differ: {a.shape[1]} and {b.shape[1]}", "use one extractor for both sets of images"
        )
    return a, b


def checked_images(images: Tensor) -> Tensor:
    """Return images (B, C, H, W) unchanged.

    Raises: BadInputError for another shape or values outside [-1, 1]; StageFailedError, with their number, when some
    images hold NaN or infinity: the model that made them failed.
    """
    if images.ndim != 4:
        raise BadInputError(f"images must have shape (B, C, H, W): {tuple(images.shape)}", "add the missing axes")
    if not images.is_floating_point():
        raise BadInputError(f"images must be floating point in [-1, 1]: {images.dtype}", "use pixels / 127.5 - 1")
    broken = int((~torch.isfinite(images)).flatten(1).any(dim=1).sum())
    if broken:
        raise StageFailedError(
            f"{broken} of {len(images)} images are not finite",
            "the sampler diverged or overflowed: check the precision and the checkpoint",
        )
    largest = float(images.abs().max()) if images.numel() else 0.0
    if largest > 1 + RANGE_TOLERANCE:
        raise BadInputError(f"images must be in [-1, 1], largest magnitude: {largest:.4g}", "scale or clamp them first")
    return images
