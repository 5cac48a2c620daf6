"""`accelerate launch -m edgediff distill` with a target cache: two processes are one, a killed one costs nothing."""

import json
import os
import shutil
import subprocess
import sys
import time

import psutil
import pytest
import torch

from edgediff import model_folder, pipeline
from edgediff.artifacts import read_json, sha256
from edgediff.distill import distill
from edgediff.prune import prune
from edgediff.run import Run
from edgediff.training import checkpoint

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
STEPS, TARGETS = 120, 40
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join(sys.path),
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
}
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
LAUNCH += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]


@pytest.fixture(scope="module")
def recipe(small_recipe):
    """A recipe in which two processes see what one does with twice the batch."""
    training = {"steps": STEPS, "batch_size": 4, "warmup_steps": 2, "checkpoint_every": 8, "ema_decay": 0.9}
    return small_recipe(
        data={"name": "fashion-mnist-20k"},
        distill={"kd": "output,feature", "cache": {"targets": TARGETS}, "training": training},
    )


@pytest.fixture(scope="module")
def pruned(recipe, tmp_path_factory, quiet):
    """A function → a run folder of its own with the recipe and the pruned model."""
    first = Run(tmp_path_factory.mktemp("runs") / "pruned")
    pipeline.claim(first, recipe)
    prune(first, recipe, quiet)

    def copy(name):
        shutil.copytree(first.path, first.path.with_name(name))
        return Run(first.path.with_name(name))

    return copy


def launch(run, *more):
    command = [*LAUNCH, "-m", "edgediff", "distill", str(run.path), "distill.training.batch_size=2", "--json", *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)


@pytest.fixture(scope="module")
def straight(pruned):
    """A run of two processes, what the command said, and what stood on the screen."""
    run = pruned("straight")
    process = launch(run)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    return run, json.loads(out), err


def test_two_processes_distil_what_one_does(straight, pruned, recipe, quiet):
    run, told, screen = straight
    assert f"{STEPS} steps of 4" in screen
    alone = pruned("alone")
    summary = distill(alone, recipe, quiet)
    assert (told["batch_size"], told["steps"]) == (summary.batch_size, STEPS) == (4, STEPS)
    for name in ("read", "computed"):
        assert told["cache"][name] == summary.cache[name]
    assert told["cache"]["computed"] == TARGETS and told["cache"]["read"] == STEPS * 4 - TARGETS
    # By what they say: biases before a normalisation have no gradient but rounding, which Adam makes steps of.
    one, two, before = (said_by(folder) for folder in (alone.student, run.student, alone.pruned))
    assert (two - one).norm() < 0.001 * (one - before).norm()
    assert read_json(run.student / "manifest.json")["settings"][0]["processes"] == 2


def test_a_killed_process_ends_the_command_and_costs_nothing(straight, pruned):
    run = pruned("killed")
    process, deadline = launch(run), time.monotonic() + 300
    while not checkpoint.finished_steps(run.checkpoints) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    ranks = [child for child in psutil.Process(process.pid).children(recursive=True) if is_rank(child, "1")]
    ranks[0].kill()
    process.communicate(timeout=600)
    assert process.returncode != 0 and not run.student.exists()
    assert 0 < checkpoint.finished_steps(run.checkpoints) < STEPS
    again = launch(run, "--resume")
    _, err = again.communicate(timeout=600)
    assert again.returncode == 0, err
    assert sha256(run.student / WEIGHTS) == sha256(straight[0].student / WEIGHTS)


@torch.no_grad()
def said_by(folder):
    model = model_folder.load(folder).model
    samples = torch.randn(8, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    return model(samples, torch.linspace(0, 999, 8).long()).sample


def is_rank(process, rank):
    try:
        return process.environ().get("LOCAL_RANK") == rank
    except psutil.Error:
        return False
