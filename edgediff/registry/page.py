"""A registered teacher as a page for people."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from edgediff.registry import Entry


def page(name: str, entry: Entry, folder: Path | None) -> str:
    """Return all that is known of a teacher, in Markdown.

    Args: folder: where it is on this machine; None where it is not.
    """
    facts = {
        "class": f"`{entry.class_name}`, in `{entry.component}/`",
        "parameters": f"{entry.params:,}",
        "sample": f"{entry.sample}, for images of {entry.resolution}×{entry.resolution} pixels",
        "prediction type": entry.prediction_type,
        "paper": entry.paper,
        "licence": entry.licence,
        "repository": entry.hub_id or "none",
        "mirrors": ", ".join(entry.mirrors) or "none",
        "here": f"`{folder}`" if folder else "not on this machine",
    }
    parts = [f"# {name}", f"{entry.about}.", *_remarks(entry), _table(["", ""], facts.items())]
    if entry.scores:
        rows = [(score.metric, f"{score.value:g}", score.data, score.setting, score.source) for score in entry.scores]
        parts += ["## Published scores", _table(["metric", "value", "data", "setting", "source"], rows)]
    if entry.sha256:
        hashes = [(f"`{file}`", f"`{digest}`") for file, digests in entry.sha256.items() for digest in digests]
        parts += ["## Weights", _table(["file", "sha256"], hashes)]
    for title, config in (
        ("scheduler_config.json", entry.scheduler),
        ("config.json", {"_class_name": entry.class_name, **entry.config}),
    ):
        lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in config.items())
        parts += [f"## {title}", f"```json\n{{\n{lines}\n}}\n```"]
    return "\n\n".join(parts) + "\n"


def _remarks(entry: Entry) -> list[str]:
    remarks = []
    if entry.withdrawn:
        remarks.append(f"Withdrawn by its publisher in {entry.withdrawn}; the mirrors below are other people's copies.")
    if entry.gated:
        remarks.append("Gated: accept the licence on its page and run `hf auth login` before it can be fetched.")
    if entry.how_to_get or not entry.safetensors:
        remarks.append(f"Cannot be fetched as it is: {how_to_get(entry)}.")
    return remarks


def how_to_get(entry: Entry) -> str:
    """Return what to do about a teacher whose weights are not published as safetensors."""
    return entry.how_to_get or (
        "convert its pickled weights once, where you trust them: "
        f"`DiffusionPipeline.from_pretrained('{entry.hub_id}').save_pretrained('PATH')`"
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
