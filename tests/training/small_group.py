"""Trainings of two processes; run as a file by `test_processes.py`, which looks at what they leave behind."""

import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from small_training import CONFIG, IDENTITY, inputs_at, plain_network, run, weights

from edgediff.errors import EdgeDiffError

HALF = CONFIG.model_copy(update={"batch_size": 4})  # of each of two processes: together one of CONFIG


def outcome(folder: Path, **arguments) -> dict:
    """Train, and say in plain data how it ended."""
    steps, kept = [], {}
    told = {
        "on_step": lambda record: steps.append(record.step),
        "on_snapshot": lambda step, network: kept.update({step: weights(network)}),
    }
    try:
        network, result = run(folder, **told, **arguments)
    except EdgeDiffError as error:
        return {"error": type(error).__name__, "message": error.message, "hint": error.hint, "steps": steps}
    return {
        "weights": weights(network),
        "resumed_at": result.resumed_at,
        "global_batch": result.global_batch,
        "processes": [part["processes"] for part in result.settings],
        "steps": steps,
        "snapshots": kept,
    }


def free_port() -> int:
    """Return a port that nothing listens on now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def together(processes: int, train: Callable[[int], dict]) -> list[dict]:
    """Fork processes that each call `train(rank)` in one group; return what each says, or what killed it."""
    place = {"WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    readers = []
    for rank in range(processes):
        reader, writer = os.pipe()
        child = os.fork()  # one import of torch for all of them; and none of them joins a group in this process
        if child == 0:
            place |= {"RANK": rank, "LOCAL_RANK": rank}
            os.environ.update({name: str(value) for name, value in place.items()})
            os.write(writer, json.dumps(train(rank)).encode())
            os._exit(0)
        os.close(writer)
        readers.append((child, reader))
    said = []
    for child, reader in readers:
        with os.fdopen(reader, "rb") as file:
            text = file.read()
        _, status = os.waitpid(child, 0)
        said.append(json.loads(text) if text else {"signal": os.WTERMSIG(status)})
    return said


def kill(rank: int, step: int) -> Callable[[int], None]:
    """Return what kills process 1 in step `step` (from 0)."""
    return lambda now: os.kill(os.getpid(), signal.SIGKILL) if (rank, now) == (1, step) else None


def interrupt(rank: int, step: int) -> Callable[[int], None]:
    """Return what interrupts process 1 in step `step` (from 0)."""
    return lambda now: os.kill(os.getpid(), signal.SIGINT) if (rank, now) == (1, step) else None


def broken_in(rank: int, step: int) -> dict:
    """Return the arguments of a training whose loss is no number in process 1 at step `step` (from 0)."""
    network = plain_network()

    def spoil(now: int) -> None:
        if (rank, now) == (1, step):
            with torch.no_grad():
                network[0].weight.fill_(torch.nan)

    return {"network": network, "before": spoil}


def unlearnable_in(rank: int, step: int) -> dict:
    """Return the arguments of a training that process 1 is given no numbers to learn from at step `step` (from 0)."""

    def spoiled(now: int, positions: torch.Tensor) -> torch.Tensor:
        return inputs_at(now, positions) * (torch.nan if (rank, now) == (1, step) else 1)

    return {"inputs": spoiled}


def sharded(**arguments) -> dict:
    """Train under FSDP 2, which Accelerate itself offers to GPUs only: its state is told that this is what it does."""
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, TorchDynamoPlugin

    from edgediff.training import processes

    processes.group()
    state = AcceleratorState(mixed_precision="no", dynamo_plugin=TorchDynamoPlugin(), _from_accelerator=True)
    state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    state.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=2, cpu_ram_efficient_loading=True)
    return outcome(**arguments)


def launched(folder: Path) -> int:
    """Train as one process of a launcher's group, in which process 1 is killed in step 10; say how it ended."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # with which the launcher may come before the last word
    said = outcome(folder, config=HALF, before=kill(int(os.environ["RANK"]), 9), resume=True)
    print(json.dumps(said))
    return 1 if "error" in said else 0


def main(folder: Path) -> None:
    """Run every training; print what their processes say, by name."""

    def pair(name: str, of_rank=lambda rank: {}, *, train=outcome, **arguments) -> list[dict]:
        return together(2, lambda rank: train(folder=folder / name, config=HALF, **arguments, **of_rank(rank)))

    plain = {"network": plain_network()}

    def interrupted(rank: int) -> dict:
        return {"before": interrupt(rank, 5)}

    together(1, lambda rank: outcome(folder / "taken over", config=CONFIG, before=interrupt(1, 5), **plain))
    told = {
        "plain": pair("plain", snapshots=(20, 40), **plain),
        "straight": pair("straight"),
        "killed": pair("killed", lambda rank: {"before": kill(rank, 9)}),
        "killed, resumed": pair("killed", resume=True),
        "interrupted": pair("interrupted", interrupted, **plain),
        "taken over": pair("taken over", resume=True, **plain),
        "broken": pair("broken", lambda rank: broken_in(rank, 5)),
        "unlearnable": pair("unlearnable", lambda rank: unlearnable_in(rank, 5)),
        "at odds": pair("at odds", lambda rank: {"identity": {**IDENTITY, "data": f"of process {rank}"}}),
        "sharded": pair("sharded", interrupted, train=sharded, **plain),
        "sharded, resumed": pair("sharded", train=sharded, resume=True, snapshots=(20, 40), **plain),
    }
    print(json.dumps(told))


if __name__ == "__main__":
    if "RANK" in os.environ:
        sys.exit(launched(Path(sys.argv[1])))
    main(Path(sys.argv[1]))
