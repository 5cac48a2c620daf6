"""A folder of image files, decoded when they are asked for."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from edgediff.errors import BadInputError, CorruptArtifactError

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
MODES = {1: "L", 3: "RGB"}
TEST_SHARE = 10  # one image in so many is a test image where the folder has no train/ and test/


@dataclass(frozen=True)
class ImageFolder:
    """Image files of any size, each cropped to its central square and resized (Lanczos) to the model's sample."""

    name: str
    paths: tuple[Path, ...]
    shape: tuple[int, int, int]
    sha256: str

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.paths)

    def batch(self, indices: Tensor) -> Tensor:
        """Return the images of `indices` (B,) as float32 (B, C, H, W) in [-1, 1].

        Raises: CorruptArtifactError naming a file that cannot be decoded.
        """
        pixels = np.stack([self._decode(self.paths[index]) for index in indices.tolist()])
        return torch.from_numpy(pixels).to(torch.float32) / 127.5 - 1.0

    def _decode(self, path: Path) -> np.ndarray:
        channels, height, width = self.shape
        try:
            with Image.open(path) as image:
                square = min(image.size)
                left, top = (image.width - square) // 2, (image.height - square) // 2
                cropped = image.convert(MODES[channels]).crop((left, top, left + square, top + square))
                resized = cropped.resize((width, height), Image.Resampling.LANCZOS)
        except (OSError, UnidentifiedImageError) as error:
            raise CorruptArtifactError(f"image cannot be decoded: `{path}`", f"{error}") from error
        return np.asarray(resized, dtype=np.uint8).reshape(height, width, channels).transpose(2, 0, 1)


def load(folder: Path, split: str, shape: tuple[int, int, int]) -> ImageFolder:
    """Find the images of a split: those under `folder/train` and `folder/test`, or nine and one in ten of all.

    Without those folders an image's split follows from its name, so that adding images moves none between them.
    Args: shape: (C, H, W) to convert to, C = 1 or 3.
    Raises: BadInputError when there is no image, or the model's samples are no images.
    """
    if shape[0] not in MODES:
        raise BadInputError(
            f"model samples have {shape[0]} channels, images have 1 or 3", "latent models need a cache of latents"
        )
    divided = (folder / "train").is_dir() and (folder / "test").is_dir()
    root = folder / split if divided else folder
    found = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not divided:
        found = [path for path in found if _is_test(path.relative_to(root)) == (split == "test")]
    if not found:
        raise BadInputError(f"no images for the split {split}: `{root}`", f"known kinds: {', '.join(sorted(SUFFIXES))}")
    digest = hashlib.sha256()
    for path in found:
        digest.update(f"{path.relative_to(root)}\0{path.stat().st_size}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return ImageFolder(f"{folder.name}/{split}", tuple(found), shape, digest.hexdigest())


def _is_test(path: Path) -> bool:
    return int(hashlib.sha256(str(path).encode()).hexdigest(), 16) % TEST_SHARE == 0
