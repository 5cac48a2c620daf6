"""Every way edgediff can refuse or fail: a message, a hint, and the exit code that goes with it.

Libraries raise these; `cli.py` prints them in one place as one sentence and a `hint:` line.
Wording follows one style: no full stop at the end, values after a colon, backticks around commands and paths.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class EdgeDiffError(Exception):
    """Base of all errors meant for the user.

    Args: message: one plain sentence that says what is wrong.
          hint: what to do about it; empty when the message says it all.
    """

    exit_code = 2

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class BadInputError(EdgeDiffError):
    """What the user asked for cannot be done: wrong value, missing file, conflicting options."""


class CorruptArtifactError(EdgeDiffError):
    """A file of a run folder does not have the content its manifest records."""


class MissingExtraError(EdgeDiffError):
    """An optional dependency is needed and not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs `{package}`, which is not installed",
            f"install it with `pip install 'edgediff[{extra}]'`",
        )


class StageFailedError(EdgeDiffError):
    """A stage ran and its result is not good enough to go on with (parity over tolerance, non-finite loss)."""

    exit_code = 1


class InterruptedStageError(EdgeDiffError):
    """The user stopped a stage (SIGINT); nothing finished is lost."""

    exit_code = 130


class NotComparableError(EdgeDiffError):
    """Two results come from different profiles or devices, so no verdict is possible."""

    exit_code = 3


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ``did you mean: X`` for the closest of the `known` words, or the list of them when none is close."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f"did you mean: {close[0]}" if close else f"known: {', '.join(names)}"
