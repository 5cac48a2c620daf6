"""What images show, in words: as text files and tables beside images give it."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from edgediff.errors import BadInputError

COLUMNS = ("text", "caption")  # what Hugging Face's image folders and img2dataset call them
METADATA = ("metadata.jsonl", "metadata.csv")
HINT = (
    "captions are a `metadata.jsonl` or `metadata.csv` with `file_name` and `text`, a `.txt` of the image's own name "
    "beside it (in tars also a `.json` with `caption`), or a column `text` or `caption` of a table"
)


def column(names: Iterable[str], where: str) -> str | None:
    """Return which of a table's columns holds captions; None for none.

    Raises: BadInputError for two, naming the table by `where`.
    """
    found = [name for name in COLUMNS if name in names]
    if len(found) > 1:
        raise BadInputError(f"two columns of captions, `{found[0]}` and `{found[1]}`: `{where}`", "keep one of them")
    return found[0] if found else None


def of_text(data: bytes, where: str) -> str:
    """Return the caption that is a whole text file, without the white space around it.

    Raises: BadInputError when it is no UTF-8.
    """
    try:
        return data.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise BadInputError(f"caption is not text in UTF-8: `{where}`", f"save it again as UTF-8 ({error})") from error


def of_json(data: bytes, where: str) -> str | None:
    """Return the caption in a sample's JSON object; None where it has none.

    Raises: BadInputError when it is no JSON object, or its caption is no text.
    """
    row = _object(data, where)
    name = column(row, where)
    return None if name is None else _text(row[name], where)


def metadata_file(folder: Path) -> Path | None:
    """Return the table of a folder's images, by the name that Hugging Face's image folders give it; None for none.

    Raises: BadInputError for two.
    """
    found = [folder / name for name in METADATA if (folder / name).is_file()]
    if len(found) > 1:
        raise BadInputError(f"two tables of captions: `{found[0]}`, `{found[1]}`", "keep one of them")
    return found[0] if found else None


def of_table(path: Path) -> dict[str, str]:
    """Read a `metadata_file`: the name of an image, relative to the table's folder → its caption.

    Raises: BadInputError without the two columns, for two columns of captions, an image with two captions, a caption
    that is no text, or a line that cannot be read.
    """
    rows = _json_lines(path) if path.suffix == ".jsonl" else _csv_lines(path)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    name = column(columns, str(path))
    if name is None or "file_name" not in columns:
        lacking = "file_name" if name else "text"
        raise BadInputError(f"no column `{lacking}`: `{path}` (columns: {', '.join(columns) or 'none'})", HINT)
    captions: dict[str, str] = {}
    for row in rows:
        image, text = row.get("file_name"), _text(row.get(name), str(path))
        if image is None or text is None:
            continue
        if captions.setdefault(image, text) != text:
            raise BadInputError(f"two captions of one image: `{image}` in `{path}`", "keep one of them")
    return captions


def _json_lines(path: Path) -> list[dict[str, Any]]:
    lines = path.read_bytes().splitlines()
    return [_object(line, f"{path}: line {number}") for number, line in enumerate(lines, 1) if line.strip()]


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


def _object(data: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BadInputError(f"not JSON: `{where}`", f"write it again ({error})") from error
    if not isinstance(value, dict):
        raise BadInputError(f"not a JSON object: `{where}`", "write the fields of one image as one object")
    return value


def _text(value: Any, where: str) -> str | None:
    """Return a caption as it stands in a table; None where the table leaves it out."""
    if value is None or isinstance(value, str):
        return value
    raise BadInputError(f"caption is no text in `{where}`: {value!r}", "give every image one caption, a string")
