"""Tables that the command line, the report and the model cards all show, as words."""

from __future__ import annotations

from edgediff.results import Quality


def class_accuracy_table(quality: Quality) -> list[list[str]]:
    """Return class accuracy as rows of words: a heading, what the data reach, then a row a model."""
    found = quality.class_accuracy
    if found is None:
        return []
    scales = list(dict.fromkeys(row.guidance_scale for row in found.rows))
    by_role: dict[str, list[str]] = {}
    for row in found.rows:
        by_role.setdefault(row.role, []).append(f"{row.class_accuracy:.1%}")
    return [
        ["", *(f"guidance {scale:g}" for scale in scales)],
        [quality.profile.reference_kind, *[f"{found.real:.1%}"] * len(scales)],
        *([role, *shares] for role, shares in by_role.items()),
    ]
