"""What images show, in words: what text files, JSON objects and tables call a caption."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from edgediff.errors import BadInputError

COLUMNS = ("text", "caption")  # what Hugging Face's image folders and img2dataset call them
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


def lines(path: Path) -> list[str]:
    """Return the captions of a text file with one a line, without empty lines.

    Raises: BadInputError when there is no such file, or it is no UTF-8.
    """
    if not path.is_file():
        raise BadInputError(f"file of captions not found: `{path}`", "give a text file with one caption a line")
    return [line.strip() for line in of_text(path.read_bytes(), str(path)).splitlines() if line.strip()]


def of_json(data: bytes, where: str) -> str | None:
    """Return the caption in a sample's JSON object; None where it has none.

    Raises: BadInputError when it is no JSON object, or its caption is no text.
    """
    row = object_of(data, where)
    name = column(row, where)
    return None if name is None else text_of(row[name], where)


def object_of(data: bytes, where: str) -> dict[str, Any]:
    """Return what is known of one image, from its JSON object.

    Raises: BadInputError when it is no JSON object.
    """
    try:
        value = json.loads(data)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BadInputError(f"not JSON: `{where}`", f"write it again ({error})") from error
    if not isinstance(value, dict):
        raise BadInputError(f"not a JSON object: `{where}`", "write the fields of one image as one object")
    return value


def text_of(value: Any, where: str) -> str | None:
    """Return a caption as it stands in a table; None where the table leaves it out.

    Raises: BadInputError when it is no text.
    """
    if value is None or isinstance(value, str):
        return value
    raise BadInputError(f"caption is no text in `{where}`: {value!r}", "give every image one caption, a string")
