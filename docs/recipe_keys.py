"""The page of all recipe keys, from the configs that check them: `python docs/recipe_keys.py` writes docs/recipe.md.

What a key means is the comment on it in edgediff/recipe.py; its values and its default are what pydantic checks.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from edgediff.recipe import (
    KD_LOSSES,
    KD_PRESETS,
    AutoencoderRecipe,
    Config,
    Count,
    GenerateConfig,
    Losses,
    Megabytes,
    Milliseconds,
    Recipe,
    TeacherRecipe,
)

PAGE = Path(__file__).with_name("recipe.md")
PAGES: dict[str, tuple[type[Config], str]] = {
    "Compression": (Recipe, "`edgediff compress --recipe FILE`, and every verb that goes on from its run folder."),
    "Generated data": (GenerateConfig, "`edgediff generate`, whose options these are."),
    "Teacher": (TeacherRecipe, "`edgediff teacher train FILE`."),
    "Autoencoder": (AutoencoderRecipe, "`edgediff teacher train-autoencoder FILE`."),
}
INTRODUCTION = """\
# Recipe keys

A recipe is YAML; options of the command line, and `key.of.a.section=value` behind them, change it before it is checked.
A key that is not listed is an error, and so is a value outside what the table says; `null` is "not given". `edgediff
compress --dry-run` says in seconds what a recipe will do. This page is written by `python docs/recipe_keys.py`.
"""
WORDS = {  # the first that fits: of a field, pydantic splits what these are made of
    Count: "count, such as `250k` or `1.5M`",
    Milliseconds: "milliseconds, or a time such as `30ms`",
    Megabytes: "megabytes (10⁶ bytes), or a size such as `0.5 GB`",
    Losses: "losses, with weights where they are not 1: `place`, `output,feature=0.01`. Losses: "
    + ", ".join(f"`{name}`" for name in KD_LOSSES)
    + "; presets: "
    + ", ".join(f"`{name}`" for name in KD_PRESETS),
    str: "text",
    int: "whole number",
    float: "number",
    bool: "`true`, `false`",
}
BOUNDS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}


def page() -> str:
    """Return the whole page as Markdown."""
    parts = [INTRODUCTION]
    for title, (config, used_by) in PAGES.items():
        parts.append(f"## {title}\n\n{_summary(config)} Read by {used_by}\n\n{_table(config)}")
        parts += [
            f"### `{key}`\n\n{_summary(inner)}\n\n{_table(inner)}"
            for key, inner in _sections(config)
            if _headings()[inner] == (title, key)
        ]
    return "\n".join(parts)


@cache
def _headings() -> dict[type[Config], tuple[str, str]]:
    """Return where every section is described, which is once: the part of the page, and the key."""
    found: dict[type[Config], tuple[str, str]] = {}
    for title, (config, _) in PAGES.items():
        for key, inner in _sections(config):
            found.setdefault(inner, (title, key))
    return found


def _sections(config: type[Config], prefix: str = "") -> list[tuple[str, type[Config]]]:
    """Return the sections within a config, by dotted key, outer ones first."""
    found = []
    for name, field in config.model_fields.items():
        inner = _config(field.annotation)
        if inner is not None:
            found += [(f"{prefix}{name}", inner), *_sections(inner, f"{prefix}{name}.")]
    return found


def _config(annotation: Any) -> type[Config] | None:
    """Return the section that a key holds, alone, in a list, or not always."""
    if inspect.isclass(annotation) and issubclass(annotation, Config):
        return annotation
    return next((found for inner in get_args(annotation) if (found := _config(inner))), None)


def _table(config: type[Config]) -> str:
    lines = ["| key | default | values | |", "|---|---|---|---|"]
    comments = _comments(config)
    for name, field in config.model_fields.items():
        cells = (f"`{name}`", _default(field), _values(field), comments.get(name, ""))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _summary(config: type[Config]) -> str:
    return " ".join(inspect.cleandoc(config.__doc__ or "").split())


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**must be given**"
    value = field.default
    if isinstance(value, Config):
        return ""
    if value is None:
        return "`null`"
    return f"`{json.dumps(value, ensure_ascii=False)}`"


def _values(field: FieldInfo) -> str:
    return ", ".join([_words(field.annotation, field.metadata), *_bounds(field.metadata)])


def _bounds(metadata: Iterable[Any]) -> list[str]:
    """Word the limits of a number."""
    return [
        f"{word} {getattr(limit, name):g}"
        for limit in metadata
        for name, word in BOUNDS.items()
        if getattr(limit, name, None) is not None
    ]


def _words(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """Word the values that a type takes; of a field, pydantic keeps what stood beside the type in its metadata."""
    for kind, words in WORDS.items():
        if annotation == kind or (get_origin(kind) is Annotated and get_args(kind)[1] in metadata):
            return words
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        limits = [limit for part in inner[1:] for limit in getattr(part, "metadata", ())]
        return ", ".join([_words(inner[0], inner[1:]), *_bounds(limits)])
    if origin is Literal:
        return ", ".join(f"`{value}`" if value else "nothing" for value in inner)
    if origin in (Union, UnionType):
        return " or ".join(_words(kind, metadata) for kind in inner if kind is not NoneType)
    if origin is tuple and Ellipsis in inner:
        return f"list: {_words(inner[0])}"
    if origin is tuple:
        return f"{len(inner)} of: {_words(inner[0])}"
    return f"[section](#{_headings()[section][1].replace('.', '')})" if (section := _config(annotation)) else "mapping"


@cache
def _comments(config: type[Config]) -> dict[str, str]:
    """Return what stands in comments on every key: behind it, or else in the lines before it."""
    found: dict[str, str] = {}
    above: list[str] = []
    for line in inspect.getsource(config).splitlines():
        code, _, comment = line.partition("# ")
        key = re.match(r"    (\w+): ", code)
        if key:
            found[key[1]] = (comment or " ".join(above)).replace("None:", "`null`:")
        above = [*above, comment] if comment and not code.strip() else []
    for base in config.__bases__:
        if issubclass(base, Config):
            found = _comments(base) | found
    return found


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
