"""One image at several noise levels: what teacher and student make of it, and where they differ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import avg_pool2d

from edgediff.diagnostics.held_out import HeldOut, predict
from edgediff.model_folder import Loaded

LARGEST = 64  # px; a page shows them at about this size


@dataclass(frozen=True)
class Tiles:
    """Everything by timestep: images (T, C, h, w) uint8, squared error (T, h, w), mean over channels.

    Large images are averaged down, because a page with dozens of noise images at full size is one of many megabytes.
    """

    noised: NDArray[np.uint8]
    teacher_x0: NDArray[np.uint8]
    student_x0: NDArray[np.uint8]
    squared_error: NDArray[np.float32]


def tiles(
    teacher: Loaded,
    student: Loaded,
    image: HeldOut,
    timesteps: Tensor,
    decode: Callable[[Tensor], Tensor] = lambda images: images,
) -> Tiles:
    """Return what both models say of one image (1, C, H, W) at the timesteps (T,) int64.

    The error is that of the predictions, in the teacher's prediction type (Han et al. 2026, figures 3 and 8).
    Args: decode: from samples to images, for models whose samples are latents.
    Raises: StageFailedError for a prediction that is not finite.
    """
    image = image.repeated(len(timesteps))
    expected = predict("teacher", teacher, image, timesteps, teacher)
    said = predict("student", student, image, timesteps, teacher)
    error = (said.value - expected.value).square().mean(1, keepdim=True)
    return Tiles(
        noised=_bytes(decode(image.noised(teacher, timesteps))),
        teacher_x0=_bytes(decode(expected.x0)),
        student_x0=_bytes(decode(said.x0)),
        squared_error=_smaller(error)[:, 0].float().numpy(),
    )


def _bytes(images: Tensor) -> NDArray[np.uint8]:
    return ((_smaller(images.clamp(-1, 1)) + 1) * 127.5).round().to(torch.uint8).numpy()


def _smaller(images: Tensor) -> Tensor:
    """Return images (T, C, H, W) averaged to at most LARGEST px a side."""
    return avg_pool2d(images, -(-max(images.shape[2:]) // LARGEST), ceil_mode=True)
