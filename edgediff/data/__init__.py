"""Images to train on and to compare with."""

from __future__ import annotations

from pathlib import Path

from edgediff.data import fashion_mnist
from edgediff.data.images import Images
from edgediff.recipe import DataConfig

__all__ = ["Images", "load"]


def load(config: DataConfig, split: str, *, shape: tuple[int, int, int] | None = None) -> Images:
    """Load the images of `split` (`train` or `test`)."""
    return fashion_mnist.load(split, Path(config.folder) if config.folder else None)
