"""A training on a dashboard while it runs: TensorBoard, Weights & Biases. `train.jsonl` stays the record."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgediff.errors import MissingExtraError
from edgediff.training.log import Line

PROJECT = "edgediff"
# Seconds between two points: a point takes TensorBoard's writer some milliseconds, as long as a small model's step.
INTERVAL = 1.0


def check_trackers(names: Sequence[str]) -> None:
    """Raise MissingExtraError for a tracker whose package is not installed; what writes event files always is."""
    if "wandb" in names and importlib.util.find_spec("wandb") is None:
        raise MissingExtraError("wandb", "track", "tracking with Weights & Biases")


@contextmanager
def tracking(names: Sequence[str], folder: Path, *, start: int) -> Iterator[Callable[[int, Line], None]]:
    """Give a function (step, values) that shows a training's steps: at most one a second, the last one always.

    Args: names: `tensorboard`, whose event files go to `folder/tensorboard`, and `wandb`, whose run has the folder's
          name.
          start: finished steps; what an interrupted training showed beyond them is taken back where that is possible.
    """
    trackers = [_tracker(name, folder, start) for name in names]
    for tracker in trackers:
        tracker.start()
    shown, waiting = -INTERVAL, None

    def show(step: int, values: Line) -> None:
        nonlocal shown, waiting
        waiting = (step, values)
        if time.monotonic() - shown >= INTERVAL:
            flush()

    def flush() -> None:
        nonlocal shown, waiting
        if waiting is not None:
            step, values = waiting
            for tracker in trackers:
                tracker.log(values, step=step)
            shown, waiting = time.monotonic(), None

    try:
        yield show
        flush()
    finally:
        for tracker in trackers:
            tracker.finish()


def _tracker(name: str, folder: Path, start: int) -> Any:
    from accelerate.tracking import TensorBoardTracker, WandBTracker

    if name == "tensorboard":
        # Files are named after the second they were made in, which two sessions may share.
        return TensorBoardTracker("tensorboard", folder, purge_step=start + 1, filename_suffix=f".{start}")
    return WandBTracker(PROJECT, name=folder.name, group=folder.name, dir=str(folder))
