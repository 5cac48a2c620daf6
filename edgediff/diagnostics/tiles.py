"""One image at several noise levels: what teacher and student make of it, and where they differ."""

from __future__ import annotations

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


def tiles(teacher: Loaded, student: Loaded, image: HeldOut, timesteps: Tensor) -> Tiles:
    """Return what both models say of one image (1, C, H, W) at the timesteps (T,) int64.

    The error is that of the predictions, in the teacher's prediction type (Han et al. 2026, figures 3 and 8).
    Raises: StageFailedError for a prediction that is not finite.
    """
    image = HeldOut(*(value.expand(len(timesteps), *value.shape[1:]) for value in (image.x0, image.noise)))
    sample = image.noised(teacher, timesteps)
    expected = predict("teacher", teacher, sample, timesteps, teacher)
    said = predict("student", student, sample, timesteps, teacher)
    error = (said.value - expected.value).square().mean(1, keepdim=True)
    return Tiles(_bytes(sample), _bytes(expected.x0), _bytes(said.x0), _smaller(error)[:, 0].float().numpy())


def _bytes(images: Tensor) -> NDArray[np.uint8]:
    return ((_smaller(images.clamp(-1, 1)) + 1) * 127.5).round().to(torch.uint8).numpy()


def _smaller(images: Tensor) -> Tensor:
    """Return images (T, C, H, W) averaged to at most LARGEST px a side."""
    return avg_pool2d(images, -(-max(images.shape[2:]) // LARGEST), ceil_mode=True)
