"""What `--teacher` means: the name of an embedded teacher, or a folder; nothing else interprets a teacher's name."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from edgediff.errors import BadInputError, nearest


@dataclass(frozen=True)
class Teacher:
    """A teacher that is on this machine: its name for people and its pipeline folder."""

    name: str
    folder: Path


def zoo() -> dict[str, Teacher]:
    """Return the embedded teachers by name."""
    root = Path(str(resources.files("edgediff") / "zoo"))
    return {
        path.name: Teacher(path.name, path) for path in sorted(root.glob("*")) if (path / "model_index.json").exists()
    }


def resolve(name: str) -> Teacher:
    """Return the teacher of an embedded name or of a folder (anything with a path separator, or that exists).

    Raises: BadInputError for a name that is neither, with the nearest embedded name.
    """
    embedded = zoo()
    if name in embedded:
        return embedded[name]
    if Path(name).is_dir() or "/" in name:
        return Teacher(Path(name).resolve().name, Path(name))
    raise BadInputError(f"unknown teacher: {name}", f"{nearest(name, embedded)}; or give a pipeline folder")
