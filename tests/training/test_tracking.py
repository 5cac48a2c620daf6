"""Trackers: what TensorBoard is shown of a training, whole or resumed, and what happens without a package."""

import importlib.util
import json
import struct

import pytest
from small_training import CONFIG, run
from tensorboardX.proto.event_pb2 import Event

from edgediff.errors import MissingExtraError
from edgediff.training import tracking

TRACKED = CONFIG.model_copy(update={"trackers": ("tensorboard",)})


def events(folder):
    """Everything in the event files, file by file in the order of their making."""
    found = []
    for path in sorted((folder / "tensorboard").iterdir(), key=lambda path: path.stat().st_mtime_ns):
        data, at = path.read_bytes(), 0
        while at < len(data):  # a record: its length, a checksum, the event, a checksum
            (length,) = struct.unpack_from("<Q", data, at)
            found.append(Event.FromString(data[at + 12 : at + 12 + length]))
            at += length + 16
    return found


def points(folder):
    """(step, name) → value, of all scalars shown."""
    return {(event.step, value.tag): value.simple_value for event in events(folder) for value in event.summary.value}


def test_tensorboard_shows_what_the_log_holds(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "INTERVAL", 0.0)
    run(tmp_path, config=TRACKED)
    lines = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    wanted = {(line["step"], name): value for line in lines for name, value in line.items() if name != "step"}
    assert len(wanted) == 40 * 4
    assert points(tmp_path) == pytest.approx(wanted, rel=1e-6)  # single precision in the event file


def test_points_are_thinned_out_and_end_with_the_last_step(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "INTERVAL", 1e9)
    run(tmp_path, config=TRACKED)
    assert {step for step, _ in points(tmp_path)} == {1, 40}


def test_a_resumed_training_takes_back_what_is_trained_again(tmp_path):
    """TensorBoard drops the points of a session from the step on at which the next one says it starts."""
    run(tmp_path, config=TRACKED.model_copy(update={"steps": 8}))
    run(tmp_path, config=TRACKED, resume=True)
    assert [event.step for event in events(tmp_path) if event.session_log.status == event.session_log.START] == [1, 9]


def test_no_trackers_leave_nothing(tmp_path):
    run(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoints", "train.jsonl"}


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed")
def test_a_missing_package_is_named_before_training(tmp_path):
    with pytest.raises(MissingExtraError, match="tracking with Weights & Biases needs `wandb`") as caught:
        run(tmp_path, config=CONFIG.model_copy(update={"trackers": ("tensorboard", "wandb")}))
    assert "edgediff[track]" in caught.value.hint
    assert list(tmp_path.iterdir()) == []
