"""Loose image files."""

from __future__ import annotations

import hashlib
import os
import re
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from edgediff.artifacts import sha256, write_text
from edgediff.data import captions, decoding, user_cache, walk
from edgediff.data.metadata import Metadata
from edgediff.errors import StageFailedError
from edgediff.output import Output

HASH = "images-sha256.txt"
# A file that has just changed may change again within a tick of the file system's clock and look as before: git's
# "racily clean" index entries. The coarsest clock, FAT's, ticks every two seconds.
SETTLED_NS = 2 * 10**9


@dataclass(frozen=True)
class ImageFiles:
    """Image files by index; `names` are relative to `root`, with forward slashes.

    `roots` are those of all splits, whose sub-folders are classes; `top` is the folder above them, which may describe
    all of them in one table. Both are `root` where nothing else is said.
    """

    root: Path
    names: tuple[str, ...]
    output: Output
    roots: tuple[Path, ...] = ()
    top: Path | None = None

    @cached_property
    def sha256(self) -> str:
        """Digest of names and contents; reads every file, unless none has changed since one of them was read before."""
        now = time.time_ns()
        key, changed = self._look()
        place = user_cache.made(key, HASH)
        found = _kept(place)
        if found is None:
            found = self._read_all()
            if changed < now - SETTLED_NS:
                self._keep(place, found)
        return found

    def _look(self) -> tuple[str, int]:
        """Return a digest of what tells of changes without reading, and when the last file changed (ns)."""
        digest = hashlib.sha256(f"{self.root.resolve()}\0".encode(errors="surrogateescape"))
        last = 0
        for name in self.names:
            status = (self.root / name).stat()
            # Who copies or unpacks files may set their time of modification, nobody that of their status.
            signs = f"{name}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ctime_ns}\0"
            digest.update(signs.encode(errors="surrogateescape"))
            last = max(last, status.st_mtime_ns, status.st_ctime_ns)
        return digest.hexdigest(), last

    def _read_all(self) -> str:
        digest = hashlib.sha256()
        with self.output.progress("hash images", len(self.names)) as progress:
            for name in self.names:
                path = self.root / name
                digest.update(f"{name}\0{path.stat().st_size}\0".encode(errors="surrogateescape"))
                digest.update(bytes.fromhex(sha256(path)))
                progress.advance()
        return digest.hexdigest()

    def _keep(self, place: Path, found: str) -> None:
        try:
            write_text(place, found)
        except (OSError, StageFailedError) as error:
            self.output.say(f"the hash of the images cannot be kept, every start will read them again: {error}")

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.names)

    def read(self, index: int) -> bytes:
        """Return the file's content.

        Raises: OSError when it cannot be read.
        """
        return (self.root / self.names[index]).read_bytes()

    def where(self, index: int) -> str:
        """Return the file's path."""
        return str(self.root / self.names[index])

    @cached_property
    def classes(self) -> dict[str, int]:
        """Sub-folders that hold images, by name → number, the same for all splits.

        In the order of their names, or of their numbers where all are called by numbers: 2 before 10.
        """
        found = {
            name.partition("/")[0]
            for root in self.roots or (self.root,)
            for name in walk.files(root)
            if "/" in name and os.path.splitext(name)[1].lower() in decoding.SUFFIXES
        }
        ordered = sorted(found)
        if all(name.isdecimal() for name in ordered):
            ordered.sort(key=int)
        return {name: number for number, name in enumerate(ordered)}

    def label(self, index: int) -> int | None:
        """Return the class: from tables with class labels where there are any, else the number of the sub-folder.

        None for an image that is in none of either. Raises: BadInputError for tables that cannot be read.
        """
        if self._labels is not None:
            return self._labels.get(self.where(index))
        folder, _, file = self.names[index].partition("/")
        return self.classes[folder] if file else None

    def caption(self, index: int) -> str | None:
        """Return the caption: from tables of captions where there are any, else from the text file beside the image.

        Raises: BadInputError for tables or texts that cannot be read.
        """
        if self._captions is not None:
            return self._captions.get(self.where(index))
        text = Path(self.where(index)).with_suffix(".txt")
        return captions.of_text(text.read_bytes(), str(text)) if text.is_file() else None

    @cached_property
    def _captions(self) -> dict[str, str] | None:
        """Captions by path; None where no table lies beside the images."""
        found = [(table.path.parent, table.captions()) for table in self._tables]
        return {str(folder / name): text for folder, texts in found for name, text in texts.items()} if found else None

    @cached_property
    def _labels(self) -> dict[str, int] | None:
        """Class labels by path; None where no table has any."""
        found = [(table.path.parent, table.labels()) for table in self._tables]
        return {str(folder / name): label for folder, labels in found for name, label in labels.items()} or None

    @cached_property
    def _tables(self) -> list[Metadata]:
        """The tables that lie in the images' folders or above."""
        folders = {PurePosixPath(name.rpartition("/")[0]) for name in self.names}
        around = {self.root / each for folder in folders for each in (folder, *folder.parents)}
        tables = [Metadata.of(folder) for folder in sorted(around | {self.top or self.root})]
        return [table for table in tables if table]


def _kept(place: Path) -> str | None:
    """Return a hash that was kept, or None when there is none that is whole."""
    try:
        text = place.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    return text if re.fullmatch("[0-9a-f]{64}", text) else None
