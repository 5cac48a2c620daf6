"""Teacher targets on disk: at extreme ratios the teacher's forward is nearly all the cost of a step.

An entry is a triple (image, noise seed, timestep), a pure function of its number (`training.draws`), with the
teacher's answer to it in half precision. The first visit of an entry runs the teacher and writes the answer, later
visits read it: a cold cache fills while training goes on, at the cost of training without one.

Shards are safetensors files of a fixed number of entries, made whole and full of zeros, so that a full disk shows
when a shard is made and never in the middle of a memory-mapped one. Every map has a checksum; an entry that does not
match its own (never written, torn by a crash, damaged) is computed again. On a full disk, or where the folder may only
be read, the batches that are there whole are read and the others computed every time.
"""

from __future__ import annotations

import errno
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save
from torch import Tensor

from edgediff.artifacts import MANIFEST, first_file, read_object, without, write_json
from edgediff.data.order import visited
from edgediff.data.shards import CHECKSUMS, OPEN, Shard, checksum, refuse_another
from edgediff.distillation.targets import LiveTeacher, Targets
from edgediff.errors import BadInputError, StageFailedError
from edgediff.losses.terms import batch_sum
from edgediff.training.batches import NoisedBatch

FORMAT = 1
# About, of every shard but those of larger entries. A cache may be begun with a few targets and grow to millions, so it
# does not depend on how many are asked for: small enough to be written in vain, large enough to be few.
SHARD_BYTES = 16 * 2**20
LARGEST_HALF, HALF_BYTES = 65504.0, 2
NO_FEATURES = "no"
WORDS = {  # of the identity
    "scheduler": "noise schedule",
    "told": "conditioning dropout or random conditioning",
    "precision": "precision of the teacher, which is fp32 where its predictions are converted",
}
SHARDS = "shard-*.safetensors"
DAMAGE = (ValueError, KeyError)  # what opening a shard that is not whole raises
READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
COUNTED = ("read", "computed", "teacher_seconds")
COST = "teacher_seconds_a_target"  # in the manifest, beside the identity


class TargetCache:
    """A teacher whose answers to `targets` entries are remembered in `folder`.

    Targets are the same rounded halves at the first visit and at every later one, so a training does not depend on
    how much of its cache was there before.
    """

    def __init__(
        self,
        live: LiveTeacher,
        folder: Path,
        *,
        targets: int,
        seed: int,
        identity: dict[str, str],
        tell: Callable[[str], None],
    ) -> None:
        """Open the cache, or start it.

        Args: targets: number of entries, rounded up to a whole antithetic pair.
              seed: of the order in which entries are visited after the first epoch.
              identity: what an answer depends on, by name; a cache that differs in any of it is refused.
              tell: is given a sentence when the cache cannot grow.
        Raises: BadInputError, naming what differs, for the cache of another teacher, schedule, data or precision, and
                for targets that no manifest tells the teacher of.
        """
        self.live, self.folder, self.seed, self.tell = live, folder, seed, tell
        self.count = targets + targets % 2
        self.maps = None if any(live.points) else 1  # how many of an entry's maps are read; None: all
        self.hits = self.misses = 0
        self.live_seconds = 0.0
        self.seconds_a_target = 0.0  # of the teacher, as those who filled the cache measured it
        self._open = lru_cache(OPEN)(_GrowingShard)
        self._entries_a_shard: int | None = None  # known from the first shard on
        self._growing = True
        self._identity = {"format": str(FORMAT), "features": _worded(live.points), **identity}
        if (folder / MANIFEST).exists():
            self._join()
        elif any(folder.glob(SHARDS)):
            raise BadInputError(
                f"the target cache lacks its manifest, so nobody knows whose targets these are: `{folder}`",
                "delete the folder, or choose another with `distill.cache.folder`",
            )
        else:
            self._begin()

    def entries(self, positions: Tensor) -> Tensor:
        """Return the entries at these positions: in order the first time, then in fresh orders of antithetic pairs."""
        pairs = positions // 2
        shuffled = visited(pairs, count=self.count // 2, seed=self.seed)
        return torch.where(pairs < self.count // 2, pairs, shuffled) * 2 + positions % 2

    def __call__(self, entries: Tensor, batch: NoisedBatch) -> Targets:
        """Return the teacher's targets of the entries, from disk where they are, from the teacher where not."""
        numbers = entries.tolist()
        rows = [self._read(number) for number in numbers]
        missing = [place for place, row in enumerate(rows) if row is None]
        if missing:
            # The whole batch, of which a kill may have left a part: another batch size would round in another way.
            computed = self._compute(entries, batch)
            for place in missing:
                rows[place] = computed[place]
                self._write(numbers[place], computed[place])
        else:
            self.hits += len(numbers)
        stacked = [
            torch.from_numpy(np.stack(maps)) for maps in zip(*(row[: self.maps] for row in rows if row), strict=True)
        ]
        prediction, *features = (maps.to(batch.sample.device).float() for maps in stacked)
        return Targets(prediction, tuple(features))

    def counts(self) -> dict[str, float]:
        """Return how many targets all processes read and computed since they opened it, and the teacher's seconds."""
        mine = torch.tensor([self.hits, self.misses, self.live_seconds], dtype=torch.float64)
        device = next(self.live.teachers[0].model.parameters()).device
        return dict(zip(COUNTED, batch_sum(mine.to(device)).tolist(), strict=True))

    def report(self, counts: Mapping[str, float]) -> dict[str, float]:
        """Return what a training with these counts did with it, teacher seconds saved, and what it takes on disk."""
        read, computed, seconds = (counts.get(name, 0.0) for name in COUNTED)
        return {
            "targets": self.count,
            "read": round(read),
            "computed": round(computed),
            "teacher_seconds": seconds,
            "teacher_seconds_saved": read * (seconds / computed if computed else self.seconds_a_target),
            "bytes": sum(file.stat().st_size for file in self.folder.glob(SHARDS)),
        }

    def remember_cost(self, report: Mapping[str, float]) -> None:
        """Write down what a target cost the teacher, for trainings that read only."""
        if report["computed"]:
            self.seconds_a_target = report["teacher_seconds"] / report["computed"]
            path = self.folder / MANIFEST
            # Unless it was deleted meanwhile, and perhaps begun anew for other targets.
            if path.exists() and without(read_object(path), (COST,)) == self._identity:
                with self._no_longer_growing():
                    write_json(path, {**self._identity, COST: self.seconds_a_target})

    def _join(self) -> None:
        """Go on with the cache that is there, or raise BadInputError."""
        found = read_object(self.folder / MANIFEST)
        self.seconds_a_target = found.pop(COST, 0.0)
        asked = self._identity["features"]
        if self.maps == 1:  # a cache with features serves predictions too
            self._identity["features"] = found.get("features", NO_FEATURES)
        _refuse_another(self.folder, self._identity, found)
        if self._identity["features"] != asked:  # what it lacks must be computed whole
            self.live = replace(self.live, points=_points(self._identity["features"]))

    def _begin(self) -> None:
        """Write the manifest, or join the cache of another training that begins one in this moment."""
        path = self.folder / MANIFEST
        with self._no_longer_growing(), first_file(path) as temporary:
            temporary.write_text(json.dumps(self._identity, indent=2) + "\n", encoding="utf-8")
        if path.exists():
            self._join()

    @contextmanager
    def _no_longer_growing(self) -> Iterator[None]:
        """Go on without growing where the disk is full or the folder may only be read."""
        try:
            yield
        except StageFailedError as error:
            self._stop_growing(error)
        except OSError as error:
            if error.errno not in READ_ONLY:
                raise
            self._stop_growing(error)

    def _compute(self, entries: Tensor, batch: NoisedBatch) -> list[list[np.ndarray]]:
        """Run the teacher on a batch; return its rows as halves.

        Raises: StageFailedError for an answer that is not finite, which would stay in the cache for every training.
        """
        began = time.perf_counter()
        targets = self.live(entries, batch)
        found = (targets.prediction, *targets.features)
        if not all(bool(maps.isfinite().all()) for maps in found):
            raise StageFailedError(
                f"the teacher's answer is not finite at step {batch.step + 1}, and was not kept",
                "check its weights, or train in fp32 (`distill.training.precision`), with another run and cache folder",
            )
        halves = [maps.clamp(-LARGEST_HALF, LARGEST_HALF).half().cpu().numpy() for maps in found]
        self.live_seconds += time.perf_counter() - began
        self.misses += len(entries)
        return [[maps[place] for maps in halves] for place in range(len(entries))]

    def _read(self, number: int) -> list[np.ndarray] | None:
        shard = self._shard(number, None)
        return shard.read(number % shard.entries, shard.names[: self.maps]) if shard else None

    def _write(self, number: int, row: list[np.ndarray]) -> None:
        try:
            shard = self._shard(number, row)
            if shard is not None:
                shard.write(number % shard.entries, row)
        except (OSError, StageFailedError) as error:
            self._stop_growing(error)

    def _shard(self, number: int, row: list[np.ndarray] | None) -> _GrowingShard | None:
        """Return the shard of an entry, made to hold rows like `row` where it is not there and one is given."""
        if self._entries_a_shard is None:
            found = next(filter(None, map(_opened, sorted(self.folder.glob(SHARDS)))), None)
            if found is not None:
                self._entries_a_shard = found.entries
            elif row is not None:
                self._entries_a_shard = _entries_a_shard(sum(maps.nbytes for maps in row))
            else:
                return None
        index = number // self._entries_a_shard
        path = self.folder / f"shard-{index:05}.safetensors"
        if path.exists():
            try:
                return self._open(path)
            except FileNotFoundError:  # another process makes it again in this moment
                pass
            except DAMAGE:
                if row is not None and self._growing:
                    path.unlink(missing_ok=True)
        if row is None or not self._growing:
            return None
        self._make(path, row)
        return self._open(path)

    def _make(self, path: Path, row: list[np.ndarray]) -> None:
        """Make a shard of zeros.

        Raises: StageFailedError when the disk is full; OSError where nothing may be written.
        """
        entries = self._entries_a_shard or 1
        tensors: dict[str, np.ndarray] = {CHECKSUMS: np.zeros((entries, len(row)), np.uint32)}
        for place, maps in enumerate(row):
            tensors[f"map{place:03}"] = np.zeros((entries, *maps.shape), np.float16)
        with first_file(path) as temporary:  # another process may make it too
            temporary.write_bytes(save(tensors))

    def _stop_growing(self, error: Exception) -> None:
        if self._growing:
            self.tell(f"the target cache cannot grow, batches that it lacks a part of are computed every time: {error}")
        self._growing = False


def disk_bytes(entries: int, visited: int, shapes: Iterable[Sequence[int]]) -> int:
    """Return what a cache of so many entries takes on disk once so many were visited, of maps of these shapes.

    Shards are made whole, so it may be more than its entries are.
    """
    size = HALF_BYTES * sum(map(math.prod, shapes))
    a_shard = _entries_a_shard(size)
    return math.ceil(min(entries, visited) / a_shard) * a_shard * size


def _entries_a_shard(size: int) -> int:
    return max(1, SHARD_BYTES // size)


def check_source(folder: Path, source: dict[str, str], points: Sequence[Sequence[str]] = ()) -> None:
    """Raise BadInputError, naming what differs, for the cache of another `source`, which is a part of its identity.

    Args: points: the feature points of every teacher, where their maps are asked for.
    """
    if any(points):
        source = {**source, "features": _worded(points)}
    if (folder / MANIFEST).exists():
        found = read_object(folder / MANIFEST)
        _refuse_another(folder, source, {name: found.get(name, "") for name in source})


def _refuse_another(folder: Path, wanted: Mapping[str, str], found: Mapping[str, str]) -> None:
    wanted, found = ({WORDS.get(name, name): value for name, value in of.items()} for of in (wanted, found))
    hint = "give another folder with `distill.cache.folder=`, or delete this one if no other run uses it"
    refuse_another("target cache", folder, wanted, found, hint)


def _opened(path: Path) -> Shard | None:
    """Return a shard, unless it is damaged."""
    try:
        return Shard(path)
    except DAMAGE:
        return None


def _worded(points: Sequence[Sequence[str]]) -> str:
    """Return the feature points of all teachers as the manifest has them."""
    return "; ".join(", ".join(own) for own in points if own) or NO_FEATURES


def _points(words: str) -> list[tuple[str, ...]]:
    return [tuple(own.split(", ")) for own in words.split("; ")]


class _GrowingShard(Shard):
    """A shard that is written through its file, whose errors are not fatal signals as those of a map are."""

    descriptor = -1

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.path = path

    def write(self, place: int, maps: list[np.ndarray]) -> None:
        """Write an entry, its checksums last.

        Raises: OSError when the file may not be written.
        """
        if self.descriptor < 0:
            self.descriptor = os.open(self.path, os.O_RDWR)
        for name, values in zip(self.names, maps, strict=True):
            data = np.ascontiguousarray(values).tobytes()
            os.pwrite(self.descriptor, data, self.offsets[name] + place * len(data))
        checksums = np.array([checksum(values) for values in maps], np.uint32).tobytes()
        os.pwrite(self.descriptor, checksums, self.offsets[CHECKSUMS] + place * len(checksums))

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
