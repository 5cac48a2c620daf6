"""The log of a training: one JSON line a step, written by the loop, read by cards and reports."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

Line = dict[str, float]


def read(path: Path) -> list[Line]:
    """Return the quantities of every step, in order."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def last_mean(log: Sequence[Line]) -> Line:
    """Return the mean of every quantity over the last tenth of the steps."""
    tail = log[-max(1, len(log) // 10) :]
    return {name: sum(line[name] for line in tail) / len(tail) for name in tail[0] if name != "step"}
