"""A set of images that training and evaluation read by index, in [-1, 1]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


def from_bytes(pixels: np.ndarray) -> Tensor:
    """Return images of bytes (N, C, H, W) as float32 in [-1, 1]."""
    return torch.from_numpy(pixels).to(torch.float32) / 127.5 - 1.0


def to_bytes(images: Tensor) -> np.ndarray:
    """Return images (N, C, H, W) as bytes; what is beyond [-1, 1] is cut off there."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).numpy()


class Images(Protocol):
    """What every data source offers."""

    @property
    def name(self) -> str:
        """What people call it, with its split."""

    @property
    def sha256(self) -> str:
        """Digest of the content, for manifests."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of every image."""

    def __len__(self) -> int:
        """Return the number of images."""

    def batch(self, indices: Tensor) -> Tensor:
        """Return the images of `indices` (B,) as float32 (B, C, H, W) in [-1, 1]."""


@dataclass(frozen=True)
class ImageArray:
    """Images held in memory as bytes: (N, C, H, W) uint8, with labels (N,) uint8."""

    name: str
    pixels: np.ndarray
    labels: np.ndarray
    sha256: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of every image."""
        channels, height, width = self.pixels.shape[1:]
        return channels, height, width

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.pixels)

    def batch(self, indices: Tensor) -> Tensor:
        """Return the images of `indices` (B,) as float32 (B, C, H, W) in [-1, 1]."""
        return from_bytes(self.pixels[indices.numpy()])
