"""A training of milliseconds a step, and a script that is killed in it; run as a file by `test_kill_and_resume.py`."""

import json
import os
import signal
import sys
import threading
from pathlib import Path

import torch
import torch._dynamo  # optimisers import it at their first step, which every process below would pay for
from torch import nn

from edgediff.artifacts import digest, sha256
from edgediff.recipe import TrainingConfig
from edgediff.training import checkpoint
from edgediff.training.loop import TrainingResult, train

STEPS = 40
CONFIG = TrainingConfig(
    steps=STEPS,
    batch_size=8,
    learning_rate=1e-2,
    warmup_steps=3,
    ema_decay=0.9,
    checkpoint_every=4,
    seed=5,
    trackers=(),
)

IDENTITY = {"data": "inputs", "distill": {"kd": {"place": 1.0}}}


def make_network(width: int = 16) -> nn.Module:
    """A network with every kind of state: parameters, a buffer, and dropout, which draws random numbers."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.BatchNorm1d(width), nn.Dropout(0.2), nn.Linear(width, 4))


def plain_network() -> nn.Module:
    """A network in which a sample's loss depends on that sample alone, so that batches can be put together freely."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 4))


class Regression(nn.Module):
    """Learn a fixed linear map."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs):
        loss = ((self.network(inputs) - inputs.flip(1)) ** 2).mean()
        return loss, {"mean_input": inputs.mean()}


def inputs_at(step, positions):
    """Random inputs, one a position."""
    return torch.stack([torch.randn(4, generator=torch.Generator().manual_seed(at)) for at in positions.tolist()])


def run(
    folder: Path,
    *,
    config: TrainingConfig = CONFIG,
    resume: bool = False,
    before=lambda step: None,
    inputs=inputs_at,
    identity: dict | None = None,
    network: nn.Module | None = None,
    on_step=lambda record: None,
    snapshots=(),
    on_snapshot=lambda step, network: None,
    counts=dict,
) -> tuple[nn.Module, TrainingResult]:
    """Train in `folder`, with a call of `before(step)` in the middle of every step.

    Returns: the network with its averaged weights, and the result.
    """
    network = make_network() if network is None else network

    def batches(step, positions):
        before(step)
        return inputs(step, positions).to(next(network.parameters()).device)

    result = train(
        Regression(network),
        batches,
        config,
        checkpoints=folder / "checkpoints",
        log=folder / "train.jsonl",
        identity=IDENTITY if identity is None else identity,
        resume=resume,
        on_step=on_step,
        snapshots=snapshots,
        on_snapshot=lambda step: on_snapshot(step, network),
        counts=counts,
    )
    return network, result


def weights(model: nn.Module) -> str:
    """A digest of every weight and buffer, to the last bit."""
    return digest({name: value.tolist() for name, value in model.state_dict().items()})


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _die_at_flush(number: int) -> dict:
    """Die in the `number`th flush to disk; a state takes three: of the log, the new file, the folder once renamed."""
    real, left = os.fsync, iter(range(number - 1, -1, -1))

    def fsync(descriptor: int) -> None:
        if next(left) == 0:
            _die()
        real(descriptor)

    os.fsync = fsync
    return {}


def _die_in_step(last: int) -> dict:
    return {"before": lambda step: _die() if step == last else None}


def _die_after(seconds: float) -> dict:
    threading.Timer(seconds, _die).start()
    return {"before": lambda step: threading.Event().wait(0.005)}


# What `run` is given in the process that dies.
MOMENTS = {
    "in a step between two states": lambda: _die_in_step(6),
    "log written, state not": lambda: _die_at_flush(4),
    "new state written, not yet renamed": lambda: _die_at_flush(5),
    "new state renamed, folder not flushed": lambda: _die_at_flush(6),
    "at any time": lambda: _die_after(0.02 + 0.06 * int.from_bytes(os.urandom(1)) / 255),
}


def main(folder: Path) -> None:
    """Be killed at every moment in turn, one resumed process each, then finish; print what the test compares."""
    state = folder / "checkpoints" / checkpoint.FILE_NAME
    deaths = {}
    for name, prepare in MOMENTS.items():
        child = os.fork()  # one import of torch for all of them
        if child == 0:
            run(folder, resume=True, **prepare())
            os._exit(0)
        _, status = os.waitpid(child, 0)
        deaths[name] = {
            "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else None,
            "step": checkpoint.read_facts(state)["step"],
            "left_over": len(list(state.parent.glob(".*.tmp"))),
        }
    model, result = run(folder, resume=True)
    told = {
        "deaths": deaths,
        "resumed_at": result.resumed_at,
        "weights": weights(model),
        "log": sha256(folder / "train.jsonl"),
        "files": sorted(os.listdir(state.parent)),
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
