"""Pydantic's errors in this project's words, for recipes, baselines and results alike."""

from __future__ import annotations

from types import NoneType, UnionType
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from edgediff.errors import nearest


def problems(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """Return every problem as `key: what is wrong: the value`, unknown keys with the nearest known one."""
    return [_worded(problem, model) for problem in error.errors()]


def _worded(problem: Any, model: type[BaseModel]) -> str:
    location = [str(part) for part in problem["loc"]]
    key = ".".join(location)
    match problem["type"]:
        case "extra_forbidden":
            known = _known_keys(model, location[:-1])
            return f"{key}: unknown key" + (f", {nearest(location[-1], known)}" if known else "")
        case "missing":
            return f"{key}: missing"
        case "value_error":
            reason = str(problem["ctx"]["error"])
            return f"{key}: {reason}" if key else reason  # of several keys, which it names
        case "model_type":
            return f"{key}: not a section of keys: {problem['input']}"
        case "literal_error":
            return f"{key}: not one of {problem['ctx']['expected']}: {problem['input']}"
        case _:
            reason = problem["msg"].removeprefix("Input should be ")
            return f"{key}: must be {reason}: {problem['input']}"


def _known_keys(kind: Any, location: list[str]) -> list[str]:
    """Return the keys of the model at `location`; none where the path leads through something without named keys."""
    for part in location:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            kind = _required(kind.model_fields[part].annotation) if part in kind.model_fields else None
        else:
            kind = get_args(kind)[-1] if get_args(kind) else None  # the values of a mapping, the items of a list
    return list(kind.model_fields) if isinstance(kind, type) and issubclass(kind, BaseModel) else []


def _required(kind: Any) -> Any:
    """Return what `X | None` is when it is given: X."""
    given = [part for part in get_args(kind) if part is not NoneType]
    return given[0] if isinstance(kind, UnionType) and len(given) == 1 else kind
