"""Images that are decoded when they are asked for, wherever their encoded bytes are: files, tars, Arrow tables."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from edgediff.data.decoding import decode
from edgediff.data.images import from_bytes
from edgediff.errors import CorruptArtifactError

DAMAGED_IN_A_ROW = 8  # so many mean that the source is damaged, and not an image of it


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
        return from_bytes(np.stack([decoding[index].result() for index in wanted]))

    def _decode(self, index: int) -> NDArray[np.uint8]:
        candidates = [place % len(self) for place in range(index, index + min(DAMAGED_IN_A_ROW, len(self)))]
        for candidate in candidates:
            if candidate in self._damaged:
                continue
            try:
                encoded = self.encoded.read(candidate)
            except OSError as error:  # the disk's fault, not the image's: it may be there next time
                where = self.encoded.where(candidate)
                raise CorruptArtifactError(f"image cannot be read: `{where}`", f"restore it ({error})") from error
            try:
                return decode(encoded, self.shape)
            except MemoryError:
                raise
            except Exception as error:  # the readers of Pillow's many formats raise as they please
                self._note_damage(candidate, error)
        raise self._damaged[candidates[0]]

    def _note_damage(self, index: int, reason: Exception) -> None:
        where = self.encoded.where(index)
        damage = CorruptArtifactError(f"image cannot be decoded: `{where}`", f"repair it ({reason})")
        if self._damaged.setdefault(index, damage) is damage:  # another thread may have been first
            self.tell(f"image cannot be decoded, the next one takes its place: `{where}` ({reason})")


@cache
def _threads(process: int) -> ThreadPoolExecutor:
    """Return the decoding threads of a process: one a core; Pillow decodes and resizes outside the interpreter's lock.

    Processes of one training share the machine's cores. A forked one has none of its parent's threads, so it gets its
    own.
    """
    sharing = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # set by torchrun and `accelerate launch`
    return ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // sharing), thread_name_prefix="decode")
