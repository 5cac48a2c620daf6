"""What `--teacher` means: the name of an embedded teacher, or a folder; nothing else interprets a teacher's name."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from edgediff.artifacts import read_json
from edgediff.errors import BadInputError, nearest


@dataclass(frozen=True)
class Teacher:
    """A teacher that is on this machine: its name for people and its pipeline folder."""

    name: str
    folder: Path

    def card(self) -> str:
        """Return the model card, in Markdown.

        Raises: BadInputError when the folder has none.
        """
        path = self.folder / "README.md"
        if not path.is_file():
            raise BadInputError(f"teacher has no model card: `{path}`")
        return path.read_text(encoding="utf-8")

    def summary(self) -> dict[str, Any]:
        """Return what a list of teachers shows: name, class, parameters, sample size, licence; reads no weights."""
        config = read_json(self.folder / "unet" / "config.json")
        front_matter = yaml.safe_load(self.card().split("---")[1])
        return {
            "name": self.name,
            "class_name": config["_class_name"],
            "params": front_matter["params"],
            "sample": f"{config['in_channels']}×{config['sample_size']}×{config['sample_size']}",
            "licence": front_matter["license"],
        }


def zoo() -> dict[str, Teacher]:
    """Return the embedded teachers by name."""
    root = Path(str(resources.files("edgediff") / "zoo"))
    folders = [path.parent for path in sorted(root.glob("*/model_index.json"))]
    return {folder.name: Teacher(folder.name, folder) for folder in folders}


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
