"""Loose image files."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from edgediff.artifacts import sha256


@dataclass(frozen=True)
class ImageFiles:
    """Image files by index; `names` are relative to `root`, with forward slashes."""

    root: Path
    names: tuple[str, ...]

    @cached_property
    def sha256(self) -> str:
        """Digest of names and contents; reads every file, once."""
        digest = hashlib.sha256()
        for name in self.names:
            path = self.root / name
            digest.update(f"{name}\0{path.stat().st_size}\0".encode(errors="surrogateescape"))
            digest.update(bytes.fromhex(sha256(path)))
        return digest.hexdigest()

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
