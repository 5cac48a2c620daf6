"""What people and machines see: progress and remarks on stderr, results on stdout."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Protocol

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Column, Table

from edgediff.errors import EdgeDiffError

Mode = Literal["human", "json", "quiet"]
FIGURE_STARTS = ("", "–", "-", *"0123456789")  # how a table's cell begins when it holds a number, or none
SHORT, FOLDED, GAP = 12, 6, 3  # letters: a word not to be broken, a column that breaks them, between two columns
PLAIN_INTERVAL = 10.0  # seconds between progress lines where no bar can be drawn
BAR_WIDTH = 20  # characters: with what stands beside it, it leaves most of a line of 80 to the note


class Progress(Protocol):
    """A piece of work of known size."""

    def advance(self, count: int = 1, note: str = "") -> None:
        """Say that `count` more units are done; `note` is shown behind the bar."""


class Output:
    """One command's voice.

    `human` draws bars and tables; `json` keeps stdout for one JSON document and still shows progress on stderr;
    `quiet` says nothing but errors.
    """

    def __init__(self, mode: Mode = "human") -> None:
        """Choose the voice; colours and bars follow the terminal and NO_COLOR."""
        self.mode = mode
        self.err = Console(stderr=True, highlight=False, soft_wrap=True)
        self.out = Console(highlight=False)

    def say(self, text: str) -> None:
        """Remark on what happens, on stderr."""
        if self.mode != "quiet":
            self.err.print(text, markup=False)

    def stage(self, name: str, text: str) -> None:
        """Announce a stage, or say that it was up to date, on stderr."""
        if self.mode != "quiet":
            self.err.print(f"[bold]{name:<9}[/bold] {escape(text)}")

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Show a table on stdout, words left and numbers right; for people only."""
        if self.mode != "human":
            return
        table = Table(title=title, title_justify="left", title_style="bold", header_style="dim", box=SIMPLE_HEAD)
        table.show_header = any(columns)
        whole = self._unbroken(columns, rows)
        for index, column in enumerate(columns):
            figures = all(row[index][:1] in FIGURE_STARTS for row in rows)
            table.add_column(
                column, justify="right" if figures else "left", no_wrap=index in whole, overflow="fold"
            )  # nothing is cut off
        for row in rows:
            table.add_row(*(escape(cell) for cell in row))
        self.out.print(table)

    def _unbroken(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> set[int]:
        """Return the columns that are not folded, for which there is room: the first, and those of short words.

        Columns that are too many to be left whole would be cut off instead.
        """
        short, narrow = {0}, []  # how narrow a column may become beside those that are left whole
        for index, column in enumerate(columns):
            cells = [*column.split("\n"), *(row[index] for row in rows)]
            widest = max(map(len, cells))
            if index == 0 or (widest <= SHORT and not any(" " in row[index] for row in rows)):
                short.add(index)
                narrow.append(widest)
            else:
                narrow.append(min(SHORT, max(len(word) for cell in cells for word in cell.split() or [""])))
        room = self.out.width - GAP * len(columns)
        if sum(narrow) <= room:
            return short
        return {0} if narrow[0] + FOLDED * (len(columns) - 1) <= room else set()

    def data(self, value: Mapping[str, Any]) -> None:
        """Give the result as one JSON document on stdout, in `json` mode."""
        if self.mode == "json":
            sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")

    def page(self, text: str) -> None:
        """Print a document as it is, on stdout."""
        sys.stdout.write(text if text.endswith("\n") else text + "\n")

    def error(self, error: EdgeDiffError) -> None:
        """Word an error: one sentence, and a `hint:` line where there is one, on stderr; in `json` mode as data too."""
        self.data({"error": error.message, "hint": error.hint, "exit_code": error.exit_code})
        self.err.print(f"[bold red]error:[/bold red] {escape(error.message)}")
        if error.hint:
            self.err.print(f"[bold]hint:[/bold] {escape(error.hint)}")

    @contextmanager
    def progress(self, what: str, total: int, done: int = 0) -> Iterator[Progress]:
        """Show a bar with the time left while the enclosed work runs; plain lines where stderr is no terminal."""
        if self.mode == "quiet":
            yield _Silent()
        elif not self.err.is_terminal:
            yield _Lines(self, what, total, done)
        else:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(BAR_WIDTH),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                # What takes the rest of the line gives way first, and is cut off where that is too short.
                TextColumn("{task.fields[note]}", style="dim", table_column=Column(ratio=1, no_wrap=True)),
            )
            with RichProgress(*columns, console=self.err, transient=True, expand=True) as bars:
                yield _Bar(bars, bars.add_task(what, total=total, completed=done, note=""))


QUIET = Output("quiet")
"""For work that is too short to speak of, or that another voice speaks of."""


class _Silent:
    def advance(self, count: int = 1, note: str = "") -> None:
        """Show nothing."""


class _Bar:
    def __init__(self, bars: RichProgress, task: Any) -> None:
        self.bars, self.task = bars, task

    def advance(self, count: int = 1, note: str = "") -> None:
        """Move the bar."""
        self.bars.update(self.task, advance=count, note=note)


class _Lines:
    def __init__(self, output: Output, what: str, total: int, done: int) -> None:
        self.output, self.what, self.total = output, what, total
        self.done, self.first = done, done
        self.started = self.spoke = time.monotonic()

    def advance(self, count: int = 1, note: str = "") -> None:
        """Print a line when the last one is old enough."""
        self.done += count
        now = time.monotonic()
        if now - self.spoke < PLAIN_INTERVAL:
            return
        self.spoke = now
        left = (now - self.started) / (self.done - self.first) * (self.total - self.done)
        minutes, seconds = divmod(round(left), 60)
        behind = f"  {note}" if note else ""
        self.output.say(f"{self.what}: {self.done}/{self.total}, {minutes}:{seconds:02} left{behind}")


def number(value: float | None, unit: str = "") -> str:
    """Return a figure with three significant digits and thousands separators; a dash for one that does not exist."""
    if value is None:
        return "–"
    digits = f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}".rstrip(".")
    return digits + unit
