"""Folders of images that `edgediff generate` drew: how they are laid out, and how they are told from real ones."""

from __future__ import annotations

from pathlib import Path

from edgediff.artifacts import MANIFEST, read_object
from edgediff.errors import BadInputError, CorruptArtifactError

STAGE, IMAGES = "generate", "train"  # in the manifest; the sub-folder beside it


def drawn_by(images: Path) -> str | None:
    """Return the hash of the model that drew the images in this very folder; None where nothing says that one did."""
    images = images.resolve()
    if images.name != IMAGES:
        return None
    try:
        manifest = read_object(images.parent / MANIFEST)
    except (BadInputError, CorruptArtifactError):  # none, or a file of that name that is somebody else's
        return None
    return manifest["inputs"]["teacher"] if manifest.get("stage") == STAGE else None
