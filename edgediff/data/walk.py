"""What lies in a folder, links and all: people put data sets together from parts that lie elsewhere."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def entries(folder: Path) -> Iterator[Path | os.DirEntry[str]]:
    """Return what lies in a folder but hidden things; links say of what they lead to whether it is a file."""
    for entry in os.scandir(folder):
        if not entry.name.startswith("."):
            yield Path(entry) if entry.is_symlink() else entry  # an entry raises for a link to itself


def files(root: Path) -> Iterator[str]:
    """Return the files under a folder but hidden ones, relative to it, with forward slashes.

    A folder is not entered again below itself, where links lead in circles.
    """
    return _files(root, "", frozenset())


def _files(root: Path, below: str, above: frozenset[tuple[int, int]]) -> Iterator[str]:
    status = os.stat(root / below)
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    for entry in entries(root / below):
        if entry.is_dir():
            yield from _files(root, f"{below}{entry.name}/", above | {here})
        elif entry.is_file():
            yield f"{below}{entry.name}"
