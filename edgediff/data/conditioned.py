"""Images with what else a model is told of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sized
from functools import cached_property
from typing import ClassVar, Protocol, Self

import torch
from torch import Tensor

from edgediff.artifacts import digest
from edgediff.data.images import Source
from edgediff.errors import BadInputError


class Conditions(Protocol):
    """What a model is told of each of a number of images, by the images' indices."""

    @property
    def framing(self) -> bool:
        """Whether the model must also be told how an image was cropped and resized."""

    @property
    def sha256(self) -> str:
        """Digest of the content, for manifests."""

    def __len__(self) -> int:
        """Return the number of images."""

    def __call__(self, indices: Tensor) -> dict[str, Tensor]:
        """Return further arguments of a model's forward, (B, ...) each, for the images of `indices` (B,)."""


class ClassLabels:
    """The classes (N,) int64 of images, for class-conditional models."""

    framing: ClassVar[bool] = False

    def __init__(self, labels: Tensor) -> None:
        self.labels = labels

    @classmethod
    def of(cls, images: Source) -> Self:
        """Return the classes of all images.

        Raises: BadInputError when one is not known.
        """
        return cls(images.class_labels(torch.arange(len(images))))

    @cached_property
    def sha256(self) -> str:
        """Digest of all labels in their order."""
        return hashlib.sha256(self.labels.numpy().tobytes()).hexdigest()

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def __call__(self, indices: Tensor) -> dict[str, Tensor]:
        """Return the argument `class_labels` (B,) int64."""
        return {"class_labels": self.labels[indices]}


class Conditioned:
    """Images with what a model is told of each: `Images` of a conditional model that works on pixels."""

    def __init__(self, images: Source, conditions: Conditions) -> None:
        """Join images with class labels or prompts of the same images, in the same order.

        Raises: BadInputError when they are of different numbers of images.
        """
        check_same_number(images, conditions)
        self.images, self.conditions = images, conditions

    @property
    def name(self) -> str:
        """What people call it, with its split."""
        return self.images.name

    @property
    def sha256(self) -> str:
        """Digest of the images and of what is told of them."""
        return digest([self.images.sha256, self.conditions.sha256])

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of every image."""
        return self.images.shape

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def batch(self, indices: Tensor) -> Tensor:
        """Return the images of `indices` (B,) as float32 (B, C, H, W) in [-1, 1]."""
        return self.images.batch(indices)

    def conditioning(self, indices: Tensor) -> dict[str, Tensor]:
        """Return further arguments of the model's forward, (B, ...) each, of the images that `batch` shows.

        A model that must be told how an image was framed is told what people ask it for: a whole image of this size.
        """
        told = self.conditions(self.images.shown(indices))
        if not self.conditions.framing:
            return told
        return {**told, "time_ids": whole_frame(self.shape, len(indices))}


def whole_frame(shape: tuple[int, int, int], count: int) -> Tensor:
    """Return SDXL's micro-conditioning (count, 6) float32 of uncropped images of `shape` (C, H, W).

    As `LatentCache.time_ids` gives it: original size, crop, target size.
    """
    _, height, width = shape
    return torch.tensor([height, width, 0, 0, height, width], dtype=torch.float32).expand(count, -1)


def check_same_number(images: Sized, conditions: Conditions) -> None:
    """Refuse what is told of other images.

    Raises: BadInputError when the numbers differ.
    """
    if len(conditions) != len(images):
        raise BadInputError(
            f"what is told of {len(conditions):,} images does not fit {len(images):,} images",
            "take both from the same data and the same split",
        )
