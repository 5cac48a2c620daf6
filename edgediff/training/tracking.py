"""A training on a dashboard while it runs: TensorBoard, Weights & Biases. `train.jsonl` stays the record."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgediff.errors import BadInputError, InterruptedStageError, MissingExtraError
from edgediff.training.log import Line

PROJECT = "edgediff"
# Seconds between two points: a point takes TensorBoard's writer some milliseconds, as long as a small model's step.
INTERVAL = 1.0


def check_trackers(names: Sequence[str]) -> None:
    """Raise MissingExtraError for a tracker whose package is not installed; what writes event files always is."""
    if "wandb" in names and importlib.util.find_spec("wandb") is None:
        raise MissingExtraError("wandb", "track", "tracking with Weights & Biases")


@contextmanager
def tracking(names: Sequence[str], folder: Path, facts: Mapping[str, Any]) -> Iterator[Callable[[int, Line], None]]:
    """Give a function (step, values) that shows a training's steps: at most one a second, the last one always.

    Args: names: `tensorboard`, whose event files go to `folder/tensorboard`, and `wandb`.
          facts: those with which the training begins (`facts.starting_facts`). What an interrupted one showed beyond
          its finished steps TensorBoard takes back; W&B keeps it and leaves out what is shown of these steps again.
    Raises: BadInputError when W&B cannot be reached.
    """
    started = {"tensorboard": _tensorboard, "wandb": _wandb}
    trackers: list[Any] = []
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
        for name in names:
            trackers.append(started[name](folder, facts))
        yield show
        flush()
    except InterruptedStageError:
        flush()
        raise
    finally:
        for tracker in trackers:
            tracker.finish()


def _tensorboard(folder: Path, facts: Mapping[str, Any]) -> Any:
    from accelerate.tracking import TensorBoardTracker

    start = facts["step"]
    # Files are named after the second they were made in, which two sessions may share.
    tracker = TensorBoardTracker("tensorboard", folder, purge_step=start + 1, filename_suffix=f".{start}")
    tracker.start()
    return tracker


def _wandb(folder: Path, facts: Mapping[str, Any]) -> Any:
    """Start the run of a training, or go on with it: folders of different trainings may have one name."""
    from accelerate.tracking import WandBTracker

    name = folder.resolve().name
    tracker = WandBTracker(
        PROJECT, id=facts["run"], resume="allow", name=f"{name}-{facts['run'][:6]}", group=name, dir=str(folder)
    )
    try:
        tracker.start()
    except Exception as error:  # wandb's own, of any kind: no login, no network, no permission
        raise BadInputError(
            f"Weights & Biases cannot start: {' '.join(str(error).split())}",
            "`wandb login`, or `WANDB_MODE=offline`, or leave it out: `trackers=[tensorboard]` of the training",
        ) from error
    tracker.store_init_configuration({**facts["identity"], "settings": facts["settings"][-1]})
    return tracker
