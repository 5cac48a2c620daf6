"""SIGKILL at any moment costs nothing but time: the resumed training ends with the same weights and the same log."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import small_training
from small_training import STEPS, run, weights

from edgediff.artifacts import sha256


def test_killed_at_five_moments_it_ends_bit_for_bit_the_same(tmp_path):
    script = Path(small_training.__file__)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "killed")], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert {death["signal"] for death in told["deaths"].values()} == {signal.SIGKILL}
    steps = {name: death["step"] for name, death in told["deaths"].items()}
    assert steps["in a step between two states"] == 4
    assert steps["log written, state not"] == 8
    assert steps["new state written, not yet renamed"] == 12
    assert steps["new state renamed, folder not flushed"] == 20
    assert told["deaths"]["new state written, not yet renamed"]["left_over"] == 1
    assert told["deaths"]["new state renamed, folder not flushed"]["left_over"] == 0
    assert told["resumed_at"] == list(dict.fromkeys(steps.values()))
    assert told["files"] == ["training.lock", "training.safetensors"]  # the lock is nobody's

    straight, result = run(tmp_path / "straight")
    assert result.resumed_at == [] and result.steps == STEPS
    assert told["weights"] == weights(straight)
    assert told["log"] == sha256(tmp_path / "straight" / "train.jsonl")
