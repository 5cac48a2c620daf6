"""Rows of arrays on disk, each with its checksum: safetensors files that are read through a memory map.

A shard holds tensors whose first axis are its rows, and `crc32` (rows, tensors): checksums in the order of the
tensors' names.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from edgediff.artifacts import atomic_file
from edgediff.errors import BadInputError

SHARD_BYTES = 64 * 2**20  # about; small enough to be made in a moment
OPEN = 64  # shards of a store that are mapped at once: systems give a process as few as 256 file descriptors
CHECKSUMS = "crc32"
HASH = re.compile(r"\b([0-9a-f]{8})[0-9a-f]{56}\b")  # sha256
LONGEST = 60  # characters of a value in a sentence
KINDS = {"F16": np.float16, "U32": np.uint32, "I32": np.int32, "I64": np.int64}


class Shard:
    """One file, of which any row can be read."""

    def __init__(self, path: Path) -> None:
        """Map the file.

        Raises: OSError when it is not there; ValueError or KeyError when it is not whole.
        """
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > path.stat().st_size:
                raise ValueError(f"header of {length} bytes is longer than the file")
            header: dict[str, Any] = json.loads(file.read(length))
        header.pop("__metadata__", None)
        self.offsets = {name: 8 + length + what["data_offsets"][0] for name, what in header.items()}
        whole = np.memmap(path, np.uint8, "r")  # one map, because each one holds a file descriptor
        self.tensors = {
            name: whole[slice(*(8 + length + end for end in what["data_offsets"]))]
            .view(KINDS[what["dtype"]])
            .reshape(what["shape"])
            for name, what in header.items()
        }
        self.checksums = self.tensors.pop(CHECKSUMS)
        self.names = tuple(sorted(self.tensors))
        self.entries = len(self.checksums)

    def read(self, place: int, names: Sequence[str]) -> list[np.ndarray] | None:
        """Return these tensors' rows at a place, or None where one does not match its checksum."""
        rows = [np.array(self.tensors[name][place]) for name in names]
        expected = [int(self.checksums[place, self.names.index(name)]) for name in names]
        return rows if all(map(_matches, rows, expected)) else None


def save(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write a shard of whole rows, all of it or nothing.

    Raises: StageFailedError when the disk is full.
    """
    checksums = [[checksum(row) for row in tensors[name]] for name in sorted(tensors)]
    # safetensors writes memory as it lies, and networks' outputs may lie with their channels last.
    inside = {name: np.ascontiguousarray(values) for name, values in tensors.items()}
    with atomic_file(path) as temporary:
        save_file({**inside, CHECKSUMS: np.array(checksums, np.uint32).T.copy()}, temporary)


def refuse_another(what: str, folder: Path, wanted: Mapping[str, Any], found: Mapping[str, Any], hint: str) -> None:
    """Refuse what was made from other things than `wanted`, by name.

    Raises: BadInputError that names what differs, with what was found and what is wanted.
    """
    differing = [
        f"{name} ({_brief(found.get(name))} → {_brief(wanted.get(name))})"
        for name in sorted({*wanted, *found})
        if wanted.get(name) != found.get(name)
    ]
    if differing:
        raise BadInputError(f"the {what} was made with another {', '.join(differing)}: `{folder}`", hint)


def _brief(value: Any) -> str:
    """Word a value for a sentence: hashes by their first digits, the beginning of what is long."""
    words = "not given" if value in (None, "") else HASH.sub(r"\1", str(value))
    return words if len(words) <= LONGEST else f"{words[:LONGEST]}…"


def checksum(values: np.ndarray) -> int:
    """Return a CRC-32 that is never 0, which stands for a row that was not written."""
    return zlib.crc32(np.ascontiguousarray(values).data) or 1


def _matches(values: np.ndarray, expected: int) -> bool:
    return expected != 0 and checksum(values) == expected
