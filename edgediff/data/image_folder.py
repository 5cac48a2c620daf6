"""A folder of image files, decoded when they are asked for."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

from edgediff.artifacts import sha256
from edgediff.data.images import from_bytes
from edgediff.errors import BadInputError, CorruptArtifactError

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
MODES = {1: "L", 3: "RGB"}
TEST_SHARE = 10  # one image in so many is a test image where the folder has no train/ and test/


@dataclass(frozen=True)
class ImageFolder:
    """Image files of any size, each cropped around its centre and resized to the model's sample.

    Resizing is Pillow's Lanczos, which antialiases; colour becomes grey by ITU-R 601 luma where the model wants grey.
    """

    name: str
    root: Path
    paths: tuple[Path, ...]
    shape: tuple[int, int, int]

    @cached_property
    def sha256(self) -> str:
        """Digest of names and contents; reads every file, once."""
        digest = hashlib.sha256()
        for path in self.paths:
            digest.update(f"{path.relative_to(self.root).as_posix()}\0{path.stat().st_size}\0".encode())
            digest.update(bytes.fromhex(sha256(path)))
        return digest.hexdigest()

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.paths)

    def batch(self, indices: Tensor) -> Tensor:
        """Return the images of `indices` (B,) as float32 (B, C, H, W) in [-1, 1].

        Raises: CorruptArtifactError naming a file that cannot be decoded; BadInputError naming one that has more
        than 8 bits a channel.
        """
        return from_bytes(np.stack([self._decode(self.paths[index]) for index in indices.tolist()]))

    def _decode(self, path: Path) -> np.ndarray:
        channels, height, width = self.shape
        try:
            with Image.open(path) as image:
                if image.mode.startswith(("I", "F")):  # Pillow would clip these to 255: a white image
                    raise BadInputError(
                        f"image has more than 8 bits a channel: `{path}`", "convert the images to 8 bits first"
                    )
                upright = ImageOps.exif_transpose(image).convert(MODES[channels])
                resized = ImageOps.fit(upright, (width, height), Image.Resampling.LANCZOS)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # all of Pillow's ways
            raise CorruptArtifactError(f"image cannot be decoded: `{path}`", f"remove it ({error})") from error
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
    images = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not images:
        raise BadInputError(f"no images: `{root}`", f"known kinds: {', '.join(sorted(SUFFIXES))}")
    found = [path for path in images if divided or _is_test(path.relative_to(root)) == (split == "test")]
    if not found:
        raise BadInputError(
            f"none of {len(images)} images falls to the split {split}: `{root}`",
            "divide them into sub-folders `train` and `test`, or add images",
        )
    return ImageFolder(f"{folder.resolve().name}/{split}", root, tuple(found), shape)


def _is_test(path: Path) -> bool:
    return int(hashlib.sha256(path.as_posix().encode()).hexdigest(), 16) % TEST_SHARE == 0
