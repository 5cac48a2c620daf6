"""Similarity of two images of the same seed: what a pruning, a precision or a backend changed."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import conv2d

from edgediff.errors import BadInputError
from edgediff.metrics.checks import checked_images

DATA_RANGE = 2.0  # images are in [-1, 1]
WINDOW, SIGMA = 11, 1.5
K1, K2 = 0.01, 0.03


def psnr(a: Tensor, b: Tensor) -> NDArray[np.float64]:
    """Return the peak signal-to-noise ratio of each pair, in dB: (B,), higher is closer, inf for equal images.

    Args: a, b: (B, C, H, W) in [-1, 1].
    Raises: BadInputError for unequal shapes or values out of range; StageFailedError for non-finite images.
    """
    a, b = _checked_pair(a, b)
    error = (a - b).square().mean(dim=(1, 2, 3)).numpy()
    with np.errstate(divide="ignore"):
        return 10 * np.log10(DATA_RANGE**2 / error)


def ssim(a: Tensor, b: Tensor) -> NDArray[np.float64]:
    """Return the structural similarity of each pair: (B,), in [-1, 1], 1 for equal images (Wang et al. 2004).

    Gaussian window of 11 px and sigma 1.5, only where it fits inside the image; the mean over positions and channels.

    Args: a, b: (B, C, H, W) in [-1, 1], both sides at least 11 px.
    Raises: BadInputError for unequal shapes, values out of range or small images; StageFailedError for non-finite ones.
    """
    a, b = _checked_pair(a, b)
    if min(a.shape[2:]) < WINDOW:
        raise BadInputError(f"images are too small for SSIM: {tuple(a.shape[2:])}", f"use {WINDOW} px or more")
    mean_a, mean_b, square_a, square_b, product = map(_blur, (a, b, a * a, b * b, a * b))
    var_a, var_b, cov = square_a - mean_a**2, square_b - mean_b**2, product - mean_a * mean_b
    c1, c2 = (K1 * DATA_RANGE) ** 2, (K2 * DATA_RANGE) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * cov + c2) / (var_a + var_b + c2)
    return (luminance * structure).mean(dim=(1, 2, 3)).numpy()


def _checked_pair(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    if a.shape != b.shape:
        raise BadInputError(f"image shapes differ: {tuple(a.shape)} and {tuple(b.shape)}", "compare image by image")
    return checked_images(a).detach().cpu().double(), checked_images(b).detach().cpu().double()


def _blur(images: Tensor) -> Tensor:
    """Weighted mean over the window around each position where it fits: (B, C, H - 10, W - 10)."""
    offsets = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    weights = torch.exp(-offsets.square() / (2 * SIGMA**2))
    weights = weights / weights.sum()
    flat = images.flatten(0, 1).unsqueeze(1)
    flat = conv2d(conv2d(flat, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1))
    return flat.view(*images.shape[:2], *flat.shape[2:])
