"""WebDataset shards: tars of samples, each of them files of one name before the first dot (`0001.jpg`, `0001.txt`).

A tar is read through once, for where its images begin and how long they are; that index is kept in the user's cache,
and images are then read at their offset, in any order.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Self

import numpy as np
from numpy.typing import NDArray

from edgediff.artifacts import atomic_file
from edgediff.data import captions
from edgediff.data.decoding import SUFFIXES
from edgediff.data.splits import Split, is_test
from edgediff.data.user_cache import kept
from edgediff.errors import BadInputError, CorruptArtifactError, StageFailedError
from edgediff.output import Output

INDEX = "tar-index-2.npz"  # the number is the format's
BESIDE = ("txt", "json", "cls")  # what may be known of an image, by what follows its sample's name


@dataclass(frozen=True)
class TarIndex:
    """The images of one tar, in its order: where their data begins and how long it is, (N,) int64 in bytes.

    `beside` (N, 3, 2) says the same of the files of `BESIDE` in an image's sample: beginning and length, 0 and 0 for
    one that is not there. `test` (N,) says which of them the split `test` gets where nothing else divides them;
    `sha256` is of the images' names, offsets and sizes.
    """

    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    beside: NDArray[np.int64]
    test: NDArray[np.bool_]
    sha256: str

    @classmethod
    def of(cls, path: Path) -> Self:
        """Read through a tar.

        Raises: CorruptArtifactError when it is no whole, uncompressed tar; BadInputError for two images of one sample.
        """
        members: list[tarfile.TarInfo] = []
        samples: dict[str, str] = {}
        others: dict[tuple[str, str], tuple[int, int]] = {}
        try:
            with tarfile.open(path, "r:") as tar:
                for member in tar:
                    sample, kind = _sample(member.name)
                    if kind in BESIDE and member.isfile():
                        others[sample, kind] = (member.offset_data, member.size)
                    if _is_image(member):
                        members.append(member)
                        other = samples.setdefault(sample, member.name)
                        if other != member.name:
                            raise BadInputError(
                                f"two images of one sample in `{path}`: `{other}`, `{member.name}`",
                                "what comes before the first dot of a name is the sample: keep one image of each",
                            )
                # A damaged header looks like the end to tarfile; the real one is blocks of zeros, or the file's.
                tar.fileobj.seek(tar.offset)
                if tar.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):
                    raise tarfile.ReadError(f"damaged header at byte {tar.offset}")
        except (tarfile.TarError, OSError) as error:
            raise CorruptArtifactError(f"not a whole tar: `{path}`", f"copy or download it again ({error})") from error
        beside = [[others.get((_sample(member.name)[0], kind), (0, 0)) for kind in BESIDE] for member in members]
        lines = (f"{member.name}\0{member.offset_data}\0{member.size}\0" for member in members)
        return cls(
            np.array([member.offset_data for member in members], dtype=np.int64),
            np.array([member.size for member in members], dtype=np.int64),
            np.array(beside, dtype=np.int64).reshape(-1, len(BESIDE), 2),
            np.array([is_test(member.name) for member in members], dtype=np.bool_),
            hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest(),
        )

    @classmethod
    def load(cls, path: Path) -> Self | None:
        """Return an index that was kept, or None when there is none that can be read."""
        try:
            with np.load(path, allow_pickle=False) as file:
                return cls(file["offsets"], file["sizes"], file["beside"], file["test"], str(file["sha256"]))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None

    def save(self, path: Path) -> None:
        """Keep it, whole or not at all."""
        with atomic_file(path) as temporary, temporary.open("wb") as file:
            np.savez(
                file,
                offsets=self.offsets,
                sizes=self.sizes,
                beside=self.beside,
                test=self.test,
                sha256=np.array(self.sha256),
            )


class TarMembers:
    """The images in tars by index: tars in the order of their names, images in the order of the tar."""

    def __init__(self, root: Path, names: tuple[str, ...], share: Split | None, output: Output) -> None:
        """Open the tars `names` under `root`, reading through those that have no index yet.

        Args: share: the split to keep of what the tars hold, by the images' names; None keeps everything.
        Raises: CorruptArtifactError for what is no whole tar; BadInputError for samples of several images.
        """
        self.paths, self.share = tuple(root / name for name in names), share
        self.names = names
        self._indices = _indices(self.paths, output)
        chosen = [
            np.flatnonzero(index.test == (share == "test")) if share else np.arange(len(index.test))
            for index in self._indices
        ]
        self._starts = np.concatenate([[0], np.cumsum([len(rows) for rows in chosen])])
        self._offsets = np.concatenate([index.offsets[rows] for index, rows in zip(self._indices, chosen, strict=True)])
        self._sizes = np.concatenate([index.sizes[rows] for index, rows in zip(self._indices, chosen, strict=True)])
        self._beside = np.concatenate([index.beside[rows] for index, rows in zip(self._indices, chosen, strict=True)])

    @cached_property
    def sha256(self) -> str:
        """Digest of the tars' names and sizes and of their images' names, offsets and sizes; reads no image.

        It notices added, removed, renamed and re-encoded images, and not pixels that changed within the same sizes.
        """
        digest = hashlib.sha256(f"{self.share}\0".encode())
        for name, path, index in zip(self.names, self.paths, self._indices, strict=True):
            digest.update(f"{name}\0{path.stat().st_size}\0{index.sha256}\0".encode())
        return digest.hexdigest()

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._offsets)

    def read(self, index: int) -> bytes:
        """Return the data of an image.

        Raises: OSError when it cannot be read.
        """
        return self._data(index, int(self._offsets[index]), int(self._sizes[index]))

    def label(self, index: int) -> int | None:
        """Return the number in the sample's `.cls`, or None where there is none.

        Raises: BadInputError when it is no number; CorruptArtifactError when it cannot be read.
        """
        data = self._known(index, "cls")
        try:
            return None if data is None else int(data)
        except ValueError as error:
            raise BadInputError(
                f"class label is no number: {data!r} beside `{self.where(index)}`", "write the tar again"
            ) from error

    def caption(self, index: int) -> str | None:
        """Return the sample's `.txt`, else the `caption` of its `.json`, or None where there is neither.

        Raises: BadInputError for what is no text or no JSON object; CorruptArtifactError when it cannot be read.
        """
        # Not `where`, which searches the tar: most captions are read without a mistake.
        tar = self._tar(index)
        where = f"{self.paths[tar]}: image {index - int(self._starts[tar]) + 1} of the split"
        text = self._known(index, "txt")
        if text is not None:
            return captions.of_text(text, where)
        fields = self._known(index, "json")
        return None if fields is None else captions.of_json(fields, where)

    def where(self, index: int) -> str:
        """Return the tar's path and the member's name, looked up in the tar."""
        path, offset = self._path(index), int(self._offsets[index])
        try:
            with tarfile.open(path, "r:") as tar:
                name = next(member.name for member in tar if member.offset_data == offset)
        except (tarfile.TarError, OSError, StopIteration):  # it has changed since, or is gone
            return str(path)
        return f"{path}: {name}"

    def _known(self, index: int, kind: str) -> bytes | None:
        """Return the file of a kind in an image's sample."""
        offset, size = self._beside[index, BESIDE.index(kind)].tolist()
        if offset == 0:  # where the first member's header is
            return None
        try:
            return self._data(index, offset, size)
        except OSError as error:
            raise CorruptArtifactError(
                f"sample cannot be read: `{self.where(index)}`", f"restore it ({error})"
            ) from error

    def _data(self, index: int, offset: int, size: int) -> bytes:
        # Opened every time: tars may be more than a process can hold open, and opening costs a hundredth of decoding.
        with self._path(index).open("rb", buffering=0) as file:
            data = os.pread(file.fileno(), size, offset)
        if len(data) != size:
            raise OSError("the tar has become shorter")
        return data

    def _path(self, index: int) -> Path:
        return self.paths[self._tar(index)]

    def _tar(self, index: int) -> int:
        return int(np.searchsorted(self._starts, index, side="right")) - 1


def _sample(name: str) -> tuple[str, str]:
    """Return the sample that a member belongs to, and what kind of file it is there, in small letters."""
    folder, _, file = name.rpartition("/")
    stem, _, kind = file.partition(".")
    return f"{folder}/{stem}", kind.lower()


def _is_image(member: tarfile.TarInfo) -> bool:
    name = PurePosixPath(member.name)
    plain = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE)
    return plain and name.suffix.lower() in SUFFIXES and not name.name.startswith(".")


def _indices(paths: tuple[Path, ...], output: Output) -> list[TarIndex]:
    """Return the tars' indices, from the user's cache where they are there, and put there where not."""
    places = [kept(path, INDEX) for path in paths]
    found = [TarIndex.load(place) for place in places]
    missing = [number for number, index in enumerate(found) if index is None]
    keeping = True
    if missing:
        with output.progress("index tars", len(missing)) as progress:
            for number in missing:
                index = found[number] = TarIndex.of(paths[number])
                try:
                    if keeping:
                        index.save(places[number])
                except (OSError, StageFailedError) as error:
                    keeping = False
                    output.say(f"indices of tars cannot be kept, every start will make them again: {error}")
                progress.advance()
    return [index for index in found if index is not None]
