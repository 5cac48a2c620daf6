"""Which images are for training and which for testing, where a source says so and where it does not."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection
from pathlib import PurePosixPath
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Split = Literal["train", "test"]
# What the parts of a divided source are called, the preferred name first.
PARTS: dict[Split, tuple[str, ...]] = {
    "train": ("train", "training"),
    "test": ("test", "testing", "validation", "valid", "val"),
}
KNOWN_PARTS = {name for names in PARTS.values() for name in names}
TEST_SHARE = 10  # one image in so many is a test image where the source is not divided


def part(names: Collection[str | None], split: Split) -> str | None:
    """Return which of a source's parts, called `names`, holds the split; None unless both splits have one."""
    chosen = {key: next((name for name in known if name in names), None) for key, known in PARTS.items()}
    return chosen[split] if all(chosen.values()) else None


def named_part(path: str) -> str | None:
    """Return the part that a file's name speaks of, or else the nearest folder that is called like one; None for none.

    `train` of `data/train-00000-of-00002.parquet` and of `default/train/0000.parquet`.
    """
    *folders, name = PurePosixPath(path.lower()).parts
    words = [*re.findall("[a-z]+", name), *reversed(folders)]
    return next((word for word in words if word in KNOWN_PARTS), None)


def is_test(name: str) -> bool:
    """Tell whether an image falls to the test split by its name, so that adding images moves none between splits."""
    return int(hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest(), 16) % TEST_SHARE == 0


def held_out(count: int) -> NDArray[np.bool_]:
    """Return which of `count` nameless rows fall to the test split (count,); adding rows at the end moves none.

    Rows are spread by a multiplicative hash (Knuth, TAOCP 3, 6.4), because every tenth of rows that go round ten
    classes would be one class.
    """
    spread = np.arange(count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(32)
    return spread % np.uint64(TEST_SHARE) == 0
