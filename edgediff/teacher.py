"""What `--teacher` means: an embedded or a registered name, a folder, or a hub id; nothing else interprets it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from edgediff import registry
from edgediff.artifacts import read_json, sha256
from edgediff.errors import BadInputError, CorruptArtifactError, nearest
from edgediff.registry import Entry, hub
from edgediff.registry.page import how_to_get, page


@dataclass(frozen=True)
class Teacher:
    """A teacher that is on this machine: its name for people, its pipeline folder, and what the registry knows."""

    name: str
    folder: Path
    entry: Entry | None = None

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
        component = "transformer" if (self.folder / "transformer").is_dir() else "unet"
        config = read_json(self.folder / component / "config.json")
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
    """Return the teacher of an embedded name, a registered name, a folder or a hub id, tried in this order.

    A folder exists or has a path's separators; `org/name` without such a folder is a repository of the hub. What is
    whole in the hub's cache is taken from there without asking the network; anything else is fetched.

    Raises: BadInputError for a name that is none of these, with the nearest name, and for weights that are neither
    here nor to be had; CorruptArtifactError for weights that are not the published ones.
    """
    embedded, registered = zoo(), registry.names()
    if name in embedded:
        return embedded[name]
    if name in registered:
        return _from_hub(name, registry.entry(name))
    if _is_folder(name):
        return Teacher(Path(name).resolve().name, Path(name))
    if "/" in name:
        return _from_hub(name)
    raise BadInputError(
        f"unknown teacher: {name}", f"{nearest(name, [*embedded, *registered])}; or give a pipeline folder, or a hub id"
    )


def registered(name: str) -> Entry | None:
    """Return the entry of a registered teacher whose weights are not on this machine; fetches nothing."""
    if name in zoo() or name not in registry.names():
        return None
    entry = registry.entry(name)
    return entry if hub.cached(entry.repositories) is None else None


def listing() -> list[dict[str, Any]]:
    """Return the summaries of all embedded and registered teachers, of the latter with all that is known of them."""
    embedded = [{**teacher.summary(), "where": "embedded"} for teacher in zoo().values()]
    entries = {name: registry.entry(name) for name in registry.names()}
    registered = [
        {"name": name, "where": "registered", "sample": entry.sample, **entry.model_dump(mode="json")}
        for name, entry in entries.items()
    ]
    return embedded + registered


def describe(name: str) -> str:
    """Return a teacher's model card, or of a registered one all that is known of it; fetches nothing.

    Raises: BadInputError for an unknown name, and for a folder or a repository without a card on this machine.
    """
    if name in registry.names() and name not in zoo():
        entry = registry.entry(name)
        return page(name, entry, hub.cached(entry.repositories))
    if "/" in name and not _is_folder(name):
        folder = hub.cached([name])
        if folder is None:
            raise BadInputError(f"teacher is not on this machine: {name}", "only a teacher that is here can be shown")
        return Teacher(name, folder).card()
    return resolve(name).card()


def _is_folder(name: str) -> bool:
    """Tell a folder from a hub id: it exists, or is a path that no repository can have."""
    return Path(name).is_dir() or ("/" in name and not hub.is_id(name))


def _from_hub(name: str, entry: Entry | None = None) -> Teacher:
    repositories, sources = (entry.repositories, entry.sources) if entry else ((name,), (name,))
    folder = hub.cached(repositories)
    if folder is None:
        try:
            folder = hub.fetch(sources)
        except hub.UnavailableError as error:
            where = "not on this machine" if entry else "neither a folder nor in the hub's cache"
            raise BadInputError(
                f"teacher is {where}, and cannot be fetched: {name}", _remedy(entry, error.reasons)
            ) from error
    if entry:
        _verify(folder, entry)
    return Teacher(name, folder, entry)


def _remedy(entry: Entry | None, reasons: dict[str, hub.Reason]) -> str:
    """Say what was tried, and the ways to the weights that the reasons leave open."""
    met = set(reasons.values())
    ways = ["give a folder: `--teacher PATH`"]
    if "gated" in met or (entry and entry.gated):
        ways.insert(0, "accept the licence on its page and run `hf auth login`")
    elif entry and (entry.how_to_get or not entry.safetensors):
        ways.insert(0, how_to_get(entry))
    elif "no safetensors weights" in met:
        ways.insert(0, "convert its weights once, where you trust them, with `pipeline.save_pretrained(PATH)`")
    elif met - {"not found"}:
        ways.insert(0, "run the same command once where the hub can be reached")
    tried = ", ".join(f"{repository} ({reason})" for repository, reason in reasons.items())
    return (f"tried {tried}; " if tried else "") + ", or ".join(ways)


def _verify(folder: Path, entry: Entry) -> None:
    """Hold the weights against the hashes they were published with.

    Raises: CorruptArtifactError naming the file that has another content.
    """
    for name, published in entry.sha256.items():
        path = folder / name
        if not path.is_file():
            continue  # a copy in other files: nothing to compare
        status = path.stat()
        if _digest(path, status.st_size, status.st_mtime_ns) not in published:
            raise CorruptArtifactError(
                f"weights are not the published ones: `{path}`",
                f"delete `{folder.parents[1]}` to fetch it again, or give it as a folder if you trust it: "
                f"`--teacher {folder}`",
            )


@cache
def _digest(path: Path, size: int, modified_ns: int) -> str:
    """Return the hash of a file as it was at that size and time: many stages of one run ask for their teacher."""
    return sha256(path)
