"""The log of a training: one JSON line a step, written by the loop, read by cards and reports."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from edgediff.artifacts import naming_full_disk
from edgediff.errors import BadInputError

Line = dict[str, float]


def read(path: Path) -> list[Line]:
    """Return the quantities of every step, in order.

    Raises: BadInputError for a line that is no step's.
    """
    lines = [_parsed(line) for line in path.read_bytes().splitlines()]
    if None in lines:
        raise _damaged(path, lines.index(None) + 1)
    return [line for line in lines if line is not None]


def last_mean(log: Sequence[Line]) -> Line:
    """Return the mean of every quantity over those of the last tenth of the steps that have it."""
    tail = log[-max(1, len(log) // 10) :]
    names = dict.fromkeys(name for line in tail for name in line if name != "step")
    found = {name: [line[name] for line in tail if name in line] for name in names}
    return {name: sum(values) / len(values) for name, values in found.items()}


class Log:
    """The file of a training that is under way."""

    def __init__(self, path: Path, file: TextIO) -> None:
        self.path, self.file = path, file

    def write(self, step: int, values: Line) -> None:
        """Write the line of a step, which counts from 1."""
        self.file.write(json.dumps({"step": step, **values}) + "\n")

    def flush(self) -> None:
        """Have the lines written through to the disk."""
        self.file.flush()
        os.fsync(self.file.fileno())

    def roll_back(self, step: int) -> None:
        """Drop the lines of the steps after `step`."""
        self.file.flush()
        _truncate(self.path, step)


@contextmanager
def open_log(path: Path, step: int) -> Iterator[Log]:
    """Open the log for the steps after `step`, without the lines that a kill left behind the saved state.

    Raises: StageFailedError, naming `path`, when the disk is full; BadInputError for a damaged line before others.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _truncate(path, step)
    with naming_full_disk(path), path.open("a", encoding="utf-8") as file:
        yield Log(path, file)


def check(path: Path, step: int) -> None:
    """Find out whether the log can go on after `step`, in every process, before the main one opens it.

    Raises: BadInputError for a line that is no step's before one that stays.
    """
    if path.exists():
        _kept(path.read_bytes(), path, step)


def _truncate(path: Path, step: int) -> None:
    """Drop the log's lines of later steps, and what a crash left behind the last whole line."""
    if path.exists():
        with path.open("rb+") as file:
            file.truncate(_kept(file.read(), path, step))


def _kept(content: bytes, path: Path, step: int) -> int:
    """Return how many bytes of a log stay for a training that goes on after `step`."""
    lines = content.splitlines(keepends=True)
    steps = [values["step"] if line.endswith(b"\n") and (values := _parsed(line)) else None for line in lines]
    kept = max((place for place, at in enumerate(steps, start=1) if at is not None and at <= step), default=0)
    if None in steps[:kept]:
        raise _damaged(path, steps.index(None) + 1)
    return sum(map(len, lines[:kept]))


def _damaged(path: Path, place: int) -> BadInputError:
    return BadInputError(f"line {place} of a training's log is damaged: `{path}`", "restore or delete that line")


def _parsed(line: str | bytes) -> Line | None:
    """Return the quantities of a step, or None for what is no line of a log."""
    try:
        values = json.loads(line)
    except ValueError:
        return None
    return values if isinstance(values, dict) and isinstance(values.get("step"), int) else None
