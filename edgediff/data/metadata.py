"""The table beside image files that says what is known of them, as Hugging Face's image folders have it."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self, TypeVar

from edgediff.artifacts import write_text
from edgediff.data import captions
from edgediff.errors import BadInputError

JSON_LINES = "metadata.jsonl"
NAMES = (JSON_LINES, "metadata.csv")
FILE, LABEL = "file_name", "label"  # columns; those of captions are `captions.COLUMNS`

Known = TypeVar("Known", int, str)


@dataclass(frozen=True)
class Metadata:
    """A table with one row an image, whose name is relative to the table's folder."""

    path: Path

    @classmethod
    def of(cls, folder: Path) -> Self | None:
        """Return the table that lies in a folder; None for none.

        Raises: BadInputError for two.
        """
        found = [folder / name for name in NAMES if (folder / name).is_file()]
        if len(found) > 1:
            raise BadInputError(f"two tables of the same images: `{found[0]}`, `{found[1]}`", "keep one of them")
        return cls(found[0]) if found else None

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """The rows, each as column → value.

        Raises: BadInputError for a line that cannot be read.
        """
        return _json_lines(self.path) if self.path.suffix == ".jsonl" else _csv_lines(self.path)

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Every column that a row has, in the order in which they are met."""
        return tuple(dict.fromkeys(name for row in self.rows for name in row))

    def captions(self) -> dict[str, str]:
        """Return the captions by the images' names.

        Raises: BadInputError without a column of captions, for two, and what `_of_images` raises.
        """
        column = captions.column(self.columns, str(self.path))
        if column is None:
            raise self._lacking(captions.COLUMNS[0])
        return self._of_images(column, "captions", captions.text_of)

    def labels(self) -> dict[str, int]:
        """Return the class labels by the images' names; none without such a column.

        Raises: what `_of_images` raises.
        """
        return self._of_images(LABEL, "class labels", _label_of) if LABEL in self.columns else {}

    def _of_images(self, column: str, what: str, known: Callable[[Any, str], Known | None]) -> dict[str, Known]:
        """Return what a column says of every image of which it says something.

        Raises: BadInputError without the images' names, for two values of one image, or one that is not of its kind.
        """
        if FILE not in self.columns:
            raise self._lacking(FILE)
        found: dict[str, Known] = {}
        for row in self.rows:
            image, value = row.get(FILE), known(row.get(column), str(self.path))
            if image is None or value is None:
                continue
            if found.setdefault(image, value) != value:
                raise BadInputError(f"two {what} of one image: `{image}` in `{self.path}`", "keep one of them")
        return found

    def _lacking(self, column: str) -> BadInputError:
        columns = ", ".join(self.columns) or "none"
        return BadInputError(f"no column `{column}`: `{self.path}` (columns: {columns})", captions.HINT)


def write(folder: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write the table of a folder's images, whole or not at all."""
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    write_text(folder / JSON_LINES, "".join(lines))


def _json_lines(path: Path) -> list[dict[str, Any]]:
    lines = path.read_bytes().splitlines()
    return [captions.object_of(line, f"{path}: line {number}") for number, line in enumerate(lines, 1) if line.strip()]


def _csv_lines(path: Path) -> list[dict[str, Any]]:
    rows = []
    with path.open(encoding="utf-8-sig", newline="") as file:  # spreadsheets put a mark at the file's beginning
        reader = csv.DictReader(file)
        try:
            for row in reader:
                if None in row:
                    raise BadInputError(
                        f"more fields than columns: `{path}: line {reader.line_num}`",
                        'put captions that hold commas between double quotes: "a dog, running"',
                    )
                rows.append(row)
        except (UnicodeDecodeError, csv.Error) as error:
            raise BadInputError(f"table cannot be read: `{path}`", f"save it as CSV in UTF-8 ({error})") from error
    return rows


def _label_of(value: Any, where: str) -> int | None:
    """Return a class label as it stands in a table, where CSV knows text only; None where the table leaves it out."""
    if value in (None, "", -1, "-1"):  # `datasets` writes -1 for unknown
        return None
    if str(value).isdecimal():
        return int(value)
    raise BadInputError(f"class label is no number in `{where}`: {value!r}", "number the classes from 0")
