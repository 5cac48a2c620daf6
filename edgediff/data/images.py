"""A set of images that training and evaluation read by index, in [-1, 1]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from edgediff.errors import BadInputError


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
        """Return the images of `indices` (B,) as float32 (B, C, H, W) in [-1, 1], or what stands for them: latents."""

    def conditioning(self, indices: Tensor) -> dict[str, Tensor]:
        """Return what belongs to the images of `batch(indices)`, in its order: further arguments of a model's forward.

        Every tensor is (B, ...); there is none where images are all that a model sees.
        """


class Source(Images, Protocol):
    """Images as they were found, and what else is known of them there."""

    def shown(self, indices: Tensor) -> Tensor:
        """Return whose images (B,) `batch(indices)` holds: those asked for, but where another has to stand in.

        What is known of an image must be asked for by the index that this gives.
        """

    def original_sizes(self, indices: Tensor) -> Tensor:
        """Return the height and width (B, 2) int64 of images before they got the `shape`; only of shown ones."""

    @property
    def has_classes(self) -> bool:
        """Whether the class of every image is known.

        Raises: BadInputError when what should say it cannot be read.
        """

    def class_labels(self, indices: Tensor) -> Tensor:
        """Return the classes (B,) int64 of images.

        Raises: BadInputError when one is not known.
        """

    def captions(self, indices: Tensor) -> list[str]:
        """Return what images show, in words.

        Raises: BadInputError when one is not known.
        """


@dataclass(frozen=True)
class ImageArray:
    """Images held in memory as bytes: (N, C, H, W) uint8, with labels (N,) uint8; `classes` names them where known."""

    name: str
    pixels: np.ndarray
    labels: np.ndarray
    sha256: str
    classes: tuple[str, ...] = ()

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

    def conditioning(self, indices: Tensor) -> dict[str, Tensor]:
        """Return nothing: the images are all that a model sees."""
        return {}

    def shown(self, indices: Tensor) -> Tensor:
        """Return the indices themselves: every image is whole."""
        return indices

    def original_sizes(self, indices: Tensor) -> Tensor:
        """Return the height and width (B, 2) int64, which are those of `shape`."""
        return torch.tensor(self.shape[1:]).expand(len(indices), 2)

    @property
    def has_classes(self) -> bool:
        """Whether the class of every image is known: always."""
        return True

    def class_labels(self, indices: Tensor) -> Tensor:
        """Return the classes (B,) int64."""
        return torch.from_numpy(self.labels[indices.numpy()].astype(np.int64))

    def captions(self, indices: Tensor) -> list[str]:
        """Return the names of the images' classes, in the words that CLIP likes best: `a photo of a sneaker`.

        Raises: BadInputError when they are not known.
        """
        if not self.classes:
            raise BadInputError(f"images of {self.name} have no captions", "choose a data set that has them")
        articles = ["an" if name[0].lower() in "aeiou" else "a" for name in self.classes]
        captions = [f"a photo of {article} {name}" for article, name in zip(articles, self.classes, strict=True)]
        return [captions[label] for label in self.class_labels(indices).tolist()]
