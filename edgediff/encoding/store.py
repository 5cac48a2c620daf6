"""Rows that a frozen network computed, kept in shards: filled once, across interruptions, then read in any order.

The manifest is written after each shard, with the shard's hash. What it does not list was not finished and is made
again from its first row, so that a killed encoding ends with the same bytes as one that was not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from edgediff.artifacts import MANIFEST, digest, made, read_object, sha256, write_json, write_text
from edgediff.data import shards
from edgediff.data.shards import SHARD_BYTES, Shard
from edgediff.errors import BadInputError, CorruptArtifactError, StageFailedError
from edgediff.output import Output, Progress

FORMAT = "1"

Encode = Callable[[int, int], dict[str, Tensor]]
"""From the first row and the one after the last to these rows (n, ...) of every tensor that is kept."""


class Store:
    """A finished cache of rows, such as `latents` or `prompts`."""

    def __init__(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        """Take a folder that `open` or `fill` has looked at."""
        self.folder, self.facts, self.inputs = folder, manifest["facts"], manifest["inputs"]
        self.sha256 = digest(manifest["files"])
        self._names = tuple(manifest["rows"])
        self._starts = np.cumsum([0, *manifest["rows"].values()])
        self._shard = lru_cache(shards.OPEN)(Shard)

    @classmethod
    def open(cls, folder: Path, kind: str) -> Self:
        """Open a finished cache, without comparing what it was made from with anything.

        Raises: BadInputError for what is no cache of this kind, or not finished.
        """
        if not (folder / MANIFEST).is_file():
            raise BadInputError(f"no {kind} cache: `{folder}`", "encode the data, or name the folder of a cache")
        manifest = read_object(folder / MANIFEST)
        if manifest.get("kind") != kind:
            raise BadInputError(f"not a {kind} cache, its manifest says otherwise: `{folder}`")
        done = sum(manifest["rows"].values())
        if done < manifest["count"]:
            raise BadInputError(
                f"the {kind} cache is not finished, it has {done:,} of {manifest['count']:,} rows: `{folder}`",
                "encode once more: it goes on where it stopped",
            )
        return cls(folder, manifest)

    def __len__(self) -> int:
        """Return the number of rows."""
        return int(self._starts[-1])

    def read(self, rows: Tensor, *names: str) -> tuple[Tensor, ...]:
        """Return the tensors of these names at `rows` (B,), (B, ...) each, as they are kept.

        Raises: CorruptArtifactError that names a missing or damaged shard.
        """
        found = [self._row(row, names) for row in rows.tolist()]
        return tuple(torch.from_numpy(np.stack(of_name)) for of_name in zip(*found, strict=True))

    def _row(self, row: int, names: tuple[str, ...]) -> list[np.ndarray]:
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        path = self.folder / self._names[number]
        try:
            shard = self._shard(path)
        except (OSError, ValueError, KeyError) as error:
            raise _damage(path) from error
        values = shard.read(row - int(self._starts[number]), names)
        if values is None:
            raise _damage(path)
        return values


def fill(
    folder: Path,
    kind: str,
    encode: Encode,
    *,
    count: int,
    inputs: Mapping[str, str],
    facts: Mapping[str, Any],
    batch_size: int,
    output: Output,
    beside: Mapping[str, str] | None = None,
) -> Store:
    """Start, continue or mend a cache until it holds `count` rows; what is whole of it is not made again.

    Rows are made in batches that begin at a shard's first row; no more than one shard is held in memory.

    Args: inputs: what rows depend on, by name. facts: what readers want to know; JSON values.
          beside: contents of further text files of the cache, by name.
    Raises: BadInputError, naming what differs, for a cache of other inputs; StageFailedError for values that half
    precision cannot hold, or a full disk.
    """
    beside = beside or {}
    manifest = _started(folder, kind, count, inputs, facts)
    if sum(_whole(folder, manifest).values()) == count and all(_is_whole(folder, name, manifest) for name in beside):
        return Store(folder, manifest)
    with _in_turn(folder, kind, output):
        manifest = _started(folder, kind, count, inputs, facts)  # again: whoever was first may have filled it
        for name, text in beside.items():
            if not _is_whole(folder, name, manifest):
                write_text(folder / name, text)
                manifest["files"][name] = sha256(folder / name)
        sizes, whole = manifest["rows"], _whole(folder, manifest)
        for name in sorted(set(sizes) - set(whole)):
            output.say(f"damaged shard of the {kind} cache is made again: `{folder / name}`")
        done = sum(whole.values())
        if done < count:
            with output.progress(f"encode {kind}", count, done) as progress:
                start = number = 0
                while start < count:
                    name = f"shard-{number:05}.safetensors"
                    if name not in whole:
                        rows = _shard(encode, start, count, sizes.get(name), batch_size, kind, progress)
                        shards.save(folder / name, rows)
                        sizes[name] = len(next(iter(rows.values())))
                        manifest["files"][name] = sha256(folder / name)
                        write_json(folder / MANIFEST, {**manifest, "made": made()})
                    start, number = start + sizes[name], number + 1
    return Store(folder, manifest)


@contextmanager
def _in_turn(folder: Path, kind: str, output: Output) -> Iterator[None]:
    """Wait for other runs that fill the cache at this moment; the system lets go of what a kill leaves."""
    lock = FileLock(folder / "filling.lock")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        output.say(f"waiting for another run that fills the {kind} cache: `{folder}`")
        lock.acquire()
    except (OSError, NotImplementedError):  # a file system that knows no locks
        pass
    try:
        yield
    finally:
        lock.release()


def _started(
    folder: Path, kind: str, count: int, inputs: Mapping[str, str], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the manifest of a cache that was started, or a new one."""
    wanted = {"format": FORMAT, **inputs}
    if not (folder / MANIFEST).is_file():
        return {"kind": kind, "inputs": wanted, "facts": dict(facts), "count": count, "rows": {}, "files": {}}
    manifest = read_object(folder / MANIFEST)
    hint = "give another folder, or delete this one"
    shards.refuse_another(f"{kind} cache", folder, wanted, manifest.get("inputs", {}), hint)
    return manifest


def _whole(folder: Path, manifest: Mapping[str, Any]) -> dict[str, int]:
    """Return the rows of every shard that is as the manifest says, by name."""
    return {name: rows for name, rows in manifest["rows"].items() if _is_whole(folder, name, manifest)}


def _is_whole(folder: Path, name: str, manifest: Mapping[str, Any]) -> bool:
    return (folder / name).is_file() and sha256(folder / name) == manifest["files"].get(name)


def _shard(
    encode: Encode, start: int, count: int, size: int | None, batch_size: int, kind: str, progress: Progress
) -> dict[str, np.ndarray]:
    """Return the tensors of the shard that begins at row `start`: of `size` rows, or None: of as many as fill one."""
    batches: list[dict[str, np.ndarray]] = []
    held, stop = 0, count if size is None else start + size
    for first in range(start, stop, batch_size):
        last = min(first + batch_size, stop)
        batch = {name: _kept(values, f"{kind} {first} to {last - 1}") for name, values in encode(first, last).items()}
        batches.append(batch)
        progress.advance(last - first)
        held += sum(values.nbytes for values in batch.values())
        if size is None and held >= SHARD_BYTES:
            break
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def _kept(values: Tensor, what: str) -> np.ndarray:
    """Return a tensor as it is kept: numbers of floating point as halves."""
    if values.is_floating_point():
        values = values.half()
        if not values.isfinite().all():
            raise StageFailedError(
                f"values that half precision cannot hold: {what}", "look at these rows' images or captions"
            )
    return values.cpu().numpy()


def _damage(path: Path) -> CorruptArtifactError:
    return CorruptArtifactError(
        f"shard is missing or damaged: `{path}`", "encode once more: only what is damaged is made again"
    )
