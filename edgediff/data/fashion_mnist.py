"""Fashion-MNIST (Xiao et al. 2017; MIT licence): 28x28 grey photographs of clothes, in the idx format."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np

from edgediff.data.images import ImageArray
from edgediff.data.splits import Split
from edgediff.errors import BadInputError, CorruptArtifactError

CLASSES = (
    *("T-shirt/top", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
)
PREFIX: dict[Split, str] = {"train": "train", "test": "t10k"}
# Where Debian's package `dataset-fashion-mnist` installs the full set.
SYSTEM_FOLDER = Path("/usr/share/datasets/fashion-mnist")
FRAMED = 32  # side of the images with a black frame around them, as LeCun et al. 1998 framed digits


def packaged_folder() -> Path:
    """Return the folder of the subset that comes with edgediff: the 10k test images, the first 20k training images."""
    return Path(str(resources.files("edgediff.data") / "fashion_mnist_subset"))


def load(split: Split, folder: Path | None = None) -> ImageArray:
    """Load one split from `folder`, else from the system's folder, else from the packaged subset.

    Args: split: `train` or `test`.
          folder: holds `train-images-idx3-ubyte.gz` and its siblings, gzipped or not.
    Returns: images (N, 1, 28, 28) uint8 with labels (N,) in 0..9.
    Raises: BadInputError when a named folder lacks the files; CorruptArtifactError for a damaged one.
    """
    if folder is not None:
        return _read_split(folder, split)
    try:
        return _read_split(SYSTEM_FOLDER, split)
    except BadInputError:  # not installed there
        return _read_split(packaged_folder(), split)


def framed(images: ImageArray) -> ImageArray:
    """Return the images in the middle of a black frame, (N, 1, 32, 32): for models whose sides are powers of two.

    Stable Diffusion's pipeline draws no sides that 8 does not divide. The background is black, so the frame is unseen.
    """
    border = (FRAMED - images.shape[-1]) // 2
    pixels = np.pad(images.pixels, ((0, 0), (0, 0), (border, border), (border, border)))
    return replace(images, pixels=pixels, sha256=hashlib.sha256(pixels.tobytes()).hexdigest())


def _read_split(folder: Path, split: Split) -> ImageArray:
    images_path = _find(folder, f"{PREFIX[split]}-images-idx3-ubyte")
    images = read_idx(images_path, dimensions=3)
    labels = read_idx(_find(folder, f"{PREFIX[split]}-labels-idx1-ubyte"), dimensions=1)
    if len(images) != len(labels):
        raise CorruptArtifactError(f"images and labels differ in number in `{folder}`: {len(images)}, {len(labels)}")
    sha256 = hashlib.sha256(images.tobytes()).hexdigest()
    return ImageArray(f"fashion-mnist/{split}", images[:, None], labels, sha256, CLASSES)


def _find(folder: Path, name: str) -> Path:
    for path in (folder / f"{name}.gz", folder / name):
        if path.is_file():
            return path
    raise BadInputError(
        f"Fashion-MNIST file not found: `{folder / name}.gz`",
        "name a folder with the four idx files, or leave the folder out to use the packaged subset",
    )


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Read an idx file of unsigned bytes, gzipped when its name ends in `.gz`; return it as uint8.

    Raises: CorruptArtifactError when it is not whole: truncated, damaged, or with a header of another length.
    """
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise CorruptArtifactError(f"not a complete gzip file: `{path}`", f"{error}") from error
    header = 4 + 4 * dimensions
    sizes = np.frombuffer(raw[4:header], dtype=">i4") if len(raw) >= header else ()
    shape = tuple(int(size) for size in sizes)
    if raw[:4] != bytes((0, 0, 8, dimensions)) or len(raw) - header != int(np.prod(shape)):
        raise CorruptArtifactError(f"not a complete idx file of bytes in {dimensions} dimensions: `{path}`")
    return np.frombuffer(raw, dtype=np.uint8, offset=header).reshape(shape)
