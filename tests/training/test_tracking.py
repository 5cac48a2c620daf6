"""Trackers: what TensorBoard is shown of a training, whole or resumed, and what happens without a package."""

import importlib.util
import json
import shutil
import signal
import struct
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest
from accelerate.tracking import TensorBoardTracker
from small_training import CONFIG, IDENTITY, run
from tensorboardX.proto.event_pb2 import Event

from edgediff.errors import BadInputError, InterruptedStageError, MissingExtraError
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


def test_points_end_with_the_step_that_an_interruption_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "INTERVAL", 1e9)
    with pytest.raises(InterruptedStageError, match="step 10 of 40"):
        run(tmp_path, config=TRACKED, before=lambda step: signal.raise_signal(signal.SIGINT) if step == 9 else None)
    assert {step for step, _ in points(tmp_path)} == {1, 10}


def test_a_resumed_training_takes_back_what_is_trained_again(tmp_path):
    """TensorBoard drops the points of a session from the step on at which the next one says it starts."""
    run(tmp_path, config=TRACKED.model_copy(update={"steps": 8}))
    run(tmp_path, config=TRACKED, resume=True)
    assert [event.step for event in events(tmp_path) if event.session_log.status == event.session_log.START] == [1, 9]


def test_no_trackers_leave_nothing(tmp_path):
    run(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoints", "train.jsonl"}


class FakeWandb(ModuleType):
    """What Accelerate's tracker calls of `wandb`, which remembers what it was given."""

    def __init__(self):
        super().__init__("wandb")
        self.__spec__ = ModuleSpec("wandb", None)  # by which it is found to be installed
        self.started, self.configs, self.steps = [], [], []
        self.config = SimpleNamespace(update=lambda values, allow_val_change: self.configs.append(values))

    def init(self, **settings):
        self.started.append(settings)
        return SimpleNamespace(log=lambda values, step: self.steps.append(step), finish=lambda: None)


@pytest.fixture
def wandb(monkeypatch):
    found = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", found)
    monkeypatch.setattr(tracking, "INTERVAL", 0.0)
    return found


ON_WANDB = CONFIG.model_copy(update={"trackers": ("wandb",)})


def test_a_run_of_wandb_goes_on_when_its_training_does(tmp_path, wandb):
    run(tmp_path, config=ON_WANDB.model_copy(update={"steps": 8}))
    run(tmp_path, config=ON_WANDB, resume=True)
    first, second = wandb.started
    assert first == second and first["resume"] == "allow" and first["project"] == "edgediff"
    assert wandb.steps == list(range(1, 41))


def test_a_wandb_that_cannot_start_is_one_sentence(tmp_path, wandb, monkeypatch):
    def unreachable(**settings):
        raise RuntimeError("api_key not configured\n(no-tty)")

    monkeypatch.setattr(wandb, "init", unreachable)
    finished = []
    monkeypatch.setattr(TensorBoardTracker, "finish", lambda tracker: finished.append(tracker))
    with pytest.raises(BadInputError, match=r"cannot start: api_key not configured \(no-tty\)"):
        run(tmp_path, config=CONFIG.model_copy(update={"trackers": ("tensorboard", "wandb")}))
    assert len(finished) == 1  # which had started before


def test_runs_of_wandb_have_a_name_and_an_id_of_their_own(tmp_path, wandb):
    for place in ("one", "other"):
        run(tmp_path / place / "student", config=ON_WANDB)
    shutil.rmtree(tmp_path / "one")  # as one does to train again from the start
    run(tmp_path / "one" / "student", config=ON_WANDB)
    for key in ("id", "name"):
        assert len({settings[key] for settings in wandb.started}) == 3
    assert all(settings["name"].startswith("student-") for settings in wandb.started)


def test_wandb_is_told_the_settings(tmp_path, wandb):
    run(tmp_path, config=ON_WANDB.model_copy(update={"steps": 8}))
    run(tmp_path, config=ON_WANDB.model_copy(update={"learning_rate": 1e-4}), resume=True)
    first, second = wandb.configs
    assert first["data"] == IDENTITY["data"] and first["training"]["seed"] == CONFIG.seed
    assert (first["settings"]["steps"], first["settings"]["learning_rate"]) == (8, 1e-2)
    assert (second["settings"]["steps"], second["settings"]["learning_rate"]) == (40, 1e-4)


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed")
def test_a_missing_package_is_named_before_training(tmp_path):
    with pytest.raises(MissingExtraError, match="tracking with Weights & Biases needs `wandb`") as caught:
        run(tmp_path, config=CONFIG.model_copy(update={"trackers": ("tensorboard", "wandb")}))
    assert "edgediff[track]" in caught.value.hint
    assert list(tmp_path.iterdir()) == []
