"""Which images are noise: one way in which sampling from a student that is too small fails.

Why this measure: noise and fine texture both have energy at high frequencies, and some photographs are stripes from
edge to edge. With a limit of 1.1 times the largest of Fashion-MNIST's 10,000 test images, the share of the spectral
energy beyond half the Nyquist frequency finds 62 % of the noise images of a pruned, undistilled teacher and 2 % of
those, saturated and blotchy, of a 1.6 % student after 100 steps; Laplacian energy over variance finds 8 % and 36 %;
the median-based level below 100 % and 97 %, and not one of 20,000 real training images.

What it misses, so that the share is a lower bound: noise in less than about half of an image, which a patterned shirt
has too, and images that are saturated nearly everywhere; the share of pixels out of range shows those.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from edgediff.errors import BadInputError
from edgediff.metrics.checks import checked_images

MAD_TO_STD = 0.6745  # median(|d|) / std(d) of Gaussian d
FAINT = 0.05  # std of an image in [-1, 1] below which noise is no failure: the sensor's in a nearly flat photograph
LEAST, MARGIN = 0.5, 1.1
WHITE = 1.0  # the level of white noise


def noise_level(images: Tensor) -> NDArray[np.float64]:
    """Return how much of each image's contrast is white noise: (B,), about 1 for noise of any amplitude, 0 for none.

    The standard deviation of the noise, estimated by the median of the diagonal Haar details over 0.6745 (Donoho &
    Johnstone 1994), relative to the standard deviation of the image, over all channels.

    Args: images: (B, C, H, W) in [-1, 1], both sides at least 2 px.
    Raises: BadInputError for another shape or range; StageFailedError for non-finite images.
    """
    x = checked_images(images).detach().cpu().double()
    if min(x.shape[2:]) < 2:
        raise BadInputError(f"images are too small to tell noise: {tuple(x.shape[2:])}", "use 2 px or more")
    details = (x[..., 1:, 1:] - x[..., 1:, :-1] - x[..., :-1, 1:] + x[..., :-1, :-1]) / 2
    noise = details.flatten(1).abs().median(dim=1).values / MAD_TO_STD
    centred = x - x.mean(dim=(2, 3), keepdim=True)
    contrast = (centred.square().mean(dim=(1, 2, 3)) + FAINT**2).sqrt()
    return (noise / contrast).numpy()


def noise_limit(levels: ArrayLike) -> float | None:
    """Return the level beyond which an image is noise, from the levels (N,) of all reference images.

    A tenth more than the noisiest of them, so that no real image is, and at least half of the contrast, so that few
    reference images suffice. None when the reference itself reaches the level of white noise and nothing can be told.
    """
    limit = round(max(LEAST, MARGIN * float(np.max(np.asarray(levels, dtype=np.float64)))), 3)
    return limit if limit < WHITE else None
