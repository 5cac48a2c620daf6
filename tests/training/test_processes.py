"""Two processes on one training: the same weights as one, stopped and broken together, resumed in any number."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import small_group
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from small_training import CONFIG, plain_network, run

from edgediff.errors import BadInputError, InterruptedStageError, StageFailedError
from edgediff.training import checkpoint, processes

HALF = small_group.HALF
STEPS = list(range(1, 41))
# Float32 sums in another order differ by 1e-7 relative; forty steps of Adam make at most 1e-5 of it.
CLOSE = {"atol": 1e-5, "rtol": 1e-4}
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
SCRIPT = str(Path(small_group.__file__))


@pytest.fixture(scope="module")
def groups(tmp_path_factory):
    """The folder of all trainings of two processes, and what the processes said, by training."""
    folder = tmp_path_factory.mktemp("groups")
    done = subprocess.run([sys.executable, SCRIPT, str(folder)], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folder of a training of one process with the batch of two."""
    folder = tmp_path_factory.mktemp("alone")
    run(folder, network=plain_network())
    return folder


def state_of(folder):
    return folder / "checkpoints" / checkpoint.FILE_NAME


def log_of(folder):
    return [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]


def assert_close(one, other):
    """Weights, averages, moments and logs of two finished trainings."""
    mine, theirs = load_file(state_of(one)), load_file(state_of(other))
    assert set(mine) == set(theirs)
    for name, value in mine.items():
        torch.testing.assert_close(value, theirs[name], **CLOSE)
    for line, wanted in zip(log_of(one), log_of(other), strict=True):
        assert line == pytest.approx(wanted, rel=1e-3, abs=1e-6)


def test_two_processes_are_one_with_twice_the_batch(groups, alone):
    folder, told = groups
    assert_close(folder / "plain", alone)
    main, other = told["plain"]
    assert main["weights"] == other["weights"]
    assert main["global_batch"] == 8 and main["processes"] == [2]
    assert main["steps"] == STEPS and other["steps"] == []  # progress is the main process's


def test_wrappers_leave_no_trace_in_the_file(groups, alone):
    folder, _ = groups
    for name in ("plain", "sharded"):
        with safe_open(state_of(folder / name), "pt") as two, safe_open(state_of(alone), "pt") as one:
            assert set(two.keys()) == set(one.keys())
            for key in one.keys():  # noqa: SIM118 (safe_open cannot be iterated)
                assert two.get_slice(key).get_shape() == one.get_slice(key).get_shape()


def test_a_killed_process_ends_the_others_and_costs_nothing(groups):
    """With dropout, and with statistics of batches that processes share: weights and log to the last bit."""
    folder, told = groups
    survivor, victim = told["killed"]
    assert victim == {"signal": 9}
    assert survivor["error"] == "StageFailedError" and "another process" in survivor["message"]
    assert "--resume" in survivor["hint"]
    assert told["killed, resumed"][0]["resumed_at"] == [8]
    assert [said["weights"] for said in told["killed, resumed"]] == [said["weights"] for said in told["straight"]]
    assert log_of(folder / "killed") == log_of(folder / "straight")


def test_an_interrupted_process_stops_all_after_saving(groups):
    folder, told = groups
    for said in told["interrupted"]:
        assert said["error"] == "InterruptedStageError" and "step 6 of 40" in said["message"]
    assert checkpoint.read_facts(state_of(folder / "interrupted"))["step"] == 6


def test_one_process_goes_on_where_two_were_stopped(groups, alone, tmp_path):
    folder, _ = groups
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "train.jsonl").write_bytes((folder / "interrupted" / "train.jsonl").read_bytes())
    state_of(tmp_path).write_bytes(state_of(folder / "interrupted").read_bytes())
    with pytest.raises(BadInputError, match=r"\(training.global_batch 8 → 4\)"):
        run(tmp_path, network=plain_network(), config=HALF, resume=True)
    _, result = run(tmp_path, network=plain_network(), config=CONFIG, resume=True)
    assert [part["processes"] for part in result.settings] == [2, 1]
    assert_close(tmp_path, alone)


def test_two_processes_go_on_where_one_was_stopped(groups, alone):
    folder, told = groups
    assert told["taken over"][0]["processes"] == [1, 2]
    assert_close(folder / "taken over", alone)


def test_a_loss_broken_in_one_process_is_the_same_error_in_all(groups):
    folder, told = groups
    one, other = told["broken"]
    assert one["error"] == other["error"] == "StageFailedError"
    assert one["message"] == other["message"] and "at step 6 (loss nan" in one["message"]
    assert [line["step"] for line in log_of(folder / "broken")] == [1, 2, 3, 4]


def test_what_one_process_cannot_learn_from_is_the_same_error_in_all(groups):
    folder, told = groups
    one, other = told["unlearnable"]
    assert one["error"] == other["error"] == "StageFailedError"
    assert one["message"] == other["message"] and "not finite at step 6 (batch); rolled back" in one["message"]
    assert [line["step"] for line in log_of(folder / "unlearnable")] == [1, 2, 3, 4]


def test_processes_that_were_told_different_things_are_refused(groups):
    folder, told = groups
    for said in told["at odds"]:
        assert said["error"] == "BadInputError" and "do not agree" in said["message"]
    assert not state_of(folder / "at odds").exists()


def test_sharded_training_is_plain_training(groups, alone):
    """FSDP 2, interrupted and resumed; and its model comes back whole."""
    folder, told = groups
    assert "step 6 of 40" in told["sharded"][0]["message"]
    assert told["sharded, resumed"][0]["resumed_at"] == [6]
    assert_close(folder / "sharded", alone)
    average = {
        name: value for name, value in load_file(state_of(folder / "sharded")).items() if name.startswith("ema.")
    }
    network = plain_network()
    network.load_state_dict({name.removeprefix("ema.network."): value for name, value in average.items()})
    assert {said["weights"] for said in told["sharded, resumed"]} == {small_group.weights(network)}


@pytest.mark.parametrize("name", ["plain", "sharded, resumed"])
def test_the_main_process_keeps_snapshots_of_the_whole_average(groups, name):
    main, other = groups[1][name]
    assert list(main["snapshots"]) == ["20", "40"] and main["snapshots"]["40"] == main["weights"]
    assert main["snapshots"]["20"] != main["weights"] and other["snapshots"] == {}


def test_accelerate_launch_ends_with_an_error_when_a_process_is_killed(tmp_path):
    """Exit code 1 at once, the survivor's words, and a state from which the same command goes on."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command += ["--main_process_port", str(small_group.free_port()), SCRIPT, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=300)
    assert done.returncode == 1
    assert "another process of this training ended" in done.stdout
    assert checkpoint.read_facts(state_of(tmp_path))["step"] == 8


@pytest.mark.parametrize(
    ("told", "said", "hint"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed", "--use_fsdp"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "Megatron-LM", "--use_fsdp"),
        ({"ACCELERATE_USE_FSDP": "true"}, "FSDP 1", "fsdp_version: 2"),
        (
            {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_ACTIVATION_CHECKPOINTING": "true"},
            "activation checkpointing",
            "gradient_checkpointing=true",
        ),
        (
            {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "true"},
            "offloading to the CPU",
            "gradient_checkpointing=true",
        ),
    ],
)
def test_what_the_launcher_was_told_and_cannot_be_done(told, said, hint, tmp_path, monkeypatch):
    processes.group.cache_clear()
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(BadInputError, match=f"{said}.* cannot train here") as caught:
        run(tmp_path)
    assert hint in caught.value.hint and list(tmp_path.iterdir()) == []


def test_what_the_launcher_was_told_and_the_recipe_says_otherwise_is_named(monkeypatch):
    assert processes.overruled(CONFIG) == []
    for name, value in {"MIXED_PRECISION": "bf16", "GRADIENT_ACCUMULATION_STEPS": "4", "DYNAMO_BACKEND": "NO"}.items():
        monkeypatch.setenv(f"ACCELERATE_{name}", value)
    precision, accumulation = processes.overruled(CONFIG)
    assert "precision (bf16)" in precision and "the recipe's precision (fp32) holds" in precision
    assert "gradient_accumulation (4)" in accumulation
    assert processes.overruled(CONFIG.model_copy(update={"precision": "bf16", "gradient_accumulation": 4})) == []


def test_the_main_process_is_known_without_joining(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setenv("RANK", "1")  # some clusters set it for every job
    assert processes.is_main()
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert not processes.is_main()
    monkeypatch.setenv("RANK", "0")
    assert processes.is_main()


def test_an_error_of_all_processes_is_worded_once(monkeypatch):
    """Interruptions stop all alike; another error is worded by a process that its launcher has let live."""
    monkeypatch.setattr(processes, "GRACE", 0.0)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert processes.tells(InterruptedStageError("stopped"))
    monkeypatch.setenv("RANK", "1")
    assert not processes.tells(InterruptedStageError("stopped"))
    assert processes.tells(StageFailedError("broken"))
