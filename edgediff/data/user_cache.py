"""What is made once from a user's data and kept between runs: never beside their files."""

from __future__ import annotations

import os
from pathlib import Path

from edgediff.artifacts import digest
from edgediff.errors import BadInputError


def kept(source: Path, what: str) -> Path:
    """Return where `what` (a file name) made from the file `source` is kept: elsewhere after the file has changed.

    In `$XDG_CACHE_HOME/edgediff`, else `~/.cache/edgediff`; all of it may be deleted at any time.

    Raises: BadInputError where there is neither.
    """
    status = source.stat()
    return made(digest([str(source.resolve()), status.st_size, status.st_mtime_ns]), what)


def made(key: str, what: str) -> Path:
    """Return where `what` (a file name) made from everything behind a digest is kept, in the same folder as `kept`."""
    return _folder() / key[:2] / f"{key[2:32]}-{what}"


def _folder() -> Path:
    try:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as error:  # a user without a home, as containers have
        raise BadInputError("there is no home folder to keep caches of data in", "set XDG_CACHE_HOME") from error
    return root / "edgediff" / "data"
