"""Images that are decoded when they are asked for, wherever their encoded bytes are: files, tars, Arrow tables."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image
from torch import Tensor

from edgediff.data import captions
from edgediff.data.decoding import decode
from edgediff.data.images import from_bytes
from edgediff.errors import BadInputError, CorruptArtifactError

DAMAGED_IN_A_ROW = 8  # so many mean that the source is damaged, and not an image of it
LABELS_HINT = (
    "labels are a sub-folder for every class, numbers in a column `label` of a table or of `metadata.jsonl` or "
    '`metadata.csv` (words: `dataset.class_encode_column("label")`), or a `.cls` beside the image in a tar'
)

Known = TypeVar("Known", int, str)


class Encoded(Protocol):
    """Encoded images by index; read by several threads at once."""

    @property
    def sha256(self) -> str:
        """Digest of what identifies the content."""

    def __len__(self) -> int:
        """Return the number of images."""

    def read(self, index: int) -> bytes:
        """Return the encoded image of `index`.

        Raises: OSError when it cannot be read.
        """

    def where(self, index: int) -> str:
        """Return what a person would look for to find the image of `index`; may be slow."""

    def label(self, index: int) -> int | None:
        """Return the class of the image of `index`; None where it is not known.

        Raises: BadInputError when what should say it cannot be read.
        """

    def caption(self, index: int) -> str | None:
        """Return what the image of `index` shows, in words; None where that is not known.

        Raises: BadInputError when what should say it cannot be read.
        """


class EncodedImages:
    """Images of any size and format, each brought to the model's sample by `decoding.decode`.

    An image that cannot be decoded gives its place to the next one that can, and is told of. Stopping there would end
    the training for good: whoever repairs or removes the image has other data, which no saved state may go on with.
    Which image stands in is a function of the index and the content, so resuming repeats it.
    """

    def __init__(self, name: str, encoded: Encoded, shape: tuple[int, int, int], tell: Callable[[str], None]) -> None:
        """Take where the images are, the shape (C, H, W) they get, and who is told of a damaged one."""
        self.name, self.encoded, self.shape, self.tell = name, encoded, shape, tell
        self._damaged: dict[int, CorruptArtifactError] = {}
        self._whole = np.zeros(len(encoded), dtype=np.bool_)  # which were decoded before

    @property
    def sha256(self) -> str:
        """Digest of what identifies the content; what that is, the kind of source says."""
        return self.encoded.sha256

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.encoded)

    def batch(self, indices: Tensor) -> Tensor:
        """Return the images of `indices` (B,) as float32 (B, C, H, W) in [-1, 1].

        Raises: CorruptArtifactError naming an image that cannot be read, or the first of too many in a row that cannot
        be decoded.
        """
        wanted = indices.tolist()
        decoding = {index: _threads(os.getpid()).submit(self._decode, index) for index in dict.fromkeys(wanted)}
        return from_bytes(np.stack([decoding[index].result()[1] for index in wanted]))

    def conditioning(self, indices: Tensor) -> dict[str, Tensor]:
        """Return nothing: the images are all that a model sees."""
        return {}

    def shown(self, indices: Tensor) -> Tensor:
        """Return whose images (B,) `batch(indices)` holds: where one is damaged, the next whole one's.

        Raises: what `batch` raises; an image that no `batch` has shown yet is decoded to find out.
        """
        return torch.tensor([index if self._whole[index] else self._decode(index)[0] for index in indices.tolist()])

    def original_sizes(self, indices: Tensor) -> Tensor:
        """Return the height and width (B, 2) int64 of images as a viewer shows them, of those that can be decoded.

        Raises: CorruptArtifactError naming an image that cannot be read.
        """
        return torch.tensor([_upright_size(self._read(index)) for index in indices.tolist()])

    @property
    def has_classes(self) -> bool:
        """Whether the class of every image is known; where none is, one look tells.

        Raises: what `Encoded.label` does.
        """
        return all(self.encoded.label(index) is not None for index in range(len(self)))

    def class_labels(self, indices: Tensor) -> Tensor:
        """Return the classes (B,) int64 of images.

        Raises: BadInputError that counts the images whose class is not known and names one; what `Encoded.label` does.
        """
        return torch.tensor(self._all_known("class labels", self.encoded.label, indices, LABELS_HINT))

    def captions(self, indices: Tensor) -> list[str]:
        """Return what images show, in words.

        Raises: BadInputError that counts the images without a caption and names one; what `Encoded.caption` does.
        """
        return self._all_known("captions", self.encoded.caption, indices, captions.HINT)

    def _all_known(self, what: str, known: Callable[[int], Known | None], indices: Tensor, hint: str) -> list[Known]:
        asked = indices.tolist()
        found = {index: known(index) for index in dict.fromkeys(asked)}
        missing = [index for index, value in found.items() if value is None]
        if missing:
            raise BadInputError(
                f"{what} are missing for {len(missing):,} of {len(found):,} images, such as "
                f"`{self.encoded.where(missing[0])}`",
                hint,
            )
        return [value for index in asked if (value := found[index]) is not None]

    def _read(self, index: int) -> bytes:
        try:
            return self.encoded.read(index)
        except OSError as error:
            where = self.encoded.where(index)
            raise CorruptArtifactError(f"image cannot be read: `{where}`", f"restore it ({error})") from error

    def _decode(self, index: int) -> tuple[int, NDArray[np.uint8]]:
        """Return an image, or the one that stands in for it, and whose it is."""
        candidates = [place % len(self) for place in range(index, index + min(DAMAGED_IN_A_ROW, len(self)))]
        for candidate in candidates:
            if candidate in self._damaged:
                continue
            encoded = self._read(candidate)  # a failure is the disk's fault, not the image's: it may be there next time
            try:
                pixels = decode(encoded, self.shape)
            except MemoryError:
                raise
            except Exception as error:  # the readers of Pillow's many formats raise as they please
                self._note_damage(candidate, error)
            else:
                self._whole[candidate] = True
                return candidate, pixels
        raise self._damaged[candidates[0]]

    def _note_damage(self, index: int, reason: Exception) -> None:
        where = self.encoded.where(index)
        words = str(reason).partition(" <")[0]  # Pillow adds the address of the bytes
        damage = CorruptArtifactError(f"image cannot be decoded: `{where}`", f"repair it ({words})")
        if self._damaged.setdefault(index, damage) is damage:  # another thread may have been first
            self.tell(f"image cannot be decoded, the next one takes its place: `{where}` ({words})")


@cache
def _threads(process: int) -> ThreadPoolExecutor:
    """Return the decoding threads of a process: one a core; Pillow decodes and resizes outside the interpreter's lock.

    Processes of one training share the machine's cores. A forked one has none of its parent's threads, so it gets its
    own.
    """
    sharing = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # set by torchrun and `accelerate launch`
    return ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // sharing), thread_name_prefix="decode")


def _upright_size(encoded: bytes) -> tuple[int, int]:
    """Return the height and width of an image turned upright by the camera's note."""
    with Image.open(io.BytesIO(encoded)) as image:
        width, height = image.size
        sideways = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
    return (width, height) if sideways else (height, width)
