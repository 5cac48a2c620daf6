"""Where this process stands among those of one training, as `accelerate launch` or `torchrun` started them.

Without a launcher a training is a group of one. Nothing heavy is imported before a training runs, so that the command
line can ask `is_main` first.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from edgediff.errors import BadInputError, EdgeDiffError, InterruptedStageError, StageFailedError

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator, PartialState

    from edgediff.recipe import TrainingConfig

T = TypeVar("T")

# How long a process waits in the middle of a step for one that does not answer. One that died is noticed at once where
# the network says so, and its launcher ends the others; this is for the rest: a machine gone, a process that hangs.
PATIENCE = timedelta(minutes=10)
# How long it waits for the main process to do something alone: prune, index images, write files.
LONG_PATIENCE = timedelta(days=1)
GRACE = 5.0  # seconds; launchers look after their processes ten times a second


def is_main() -> bool:
    """Tell whether this is the one process that writes files and speaks."""
    return "LOCAL_RANK" not in os.environ or os.environ.get("RANK", "0") == "0"


@cache
def group() -> PartialState:
    """Return this process's place in its group, which the first call joins.

    Raises: BadInputError when the launcher was told of an engine whose state does not fit one checkpoint file.
    """
    _check_engine()
    import torch
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.cuda.is_available()
    return PartialState(cpu=cpu, timeout=PATIENCE)


def _check_engine() -> None:
    """Raise BadInputError for what `accelerate launch` was told to use and a training here cannot."""
    told = os.environ.get
    for engine, name in (("DEEPSPEED", "DeepSpeed"), ("MEGATRON_LM", "Megatron-LM")):
        if told(f"ACCELERATE_USE_{engine}", "false").lower() == "true":
            raise BadInputError(
                f"{name} cannot train here: its engine keeps a state that does not fit one checkpoint file",
                "shard the model with FSDP instead: `accelerate launch --use_fsdp --fsdp_version 2`",
            )
    if told("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return
    if told("FSDP_VERSION", "1") != "2":
        raise BadInputError(
            "FSDP 1 cannot train here: it hides which parameter a number belongs to",
            "add `--fsdp_version 2` to `accelerate launch`, or `fsdp_version: 2` to its config file",
        )
    if told("FSDP_ACTIVATION_CHECKPOINTING", "false").lower() == "true":
        raise BadInputError(
            "FSDP's activation checkpointing cannot train here: it renames parameters",
            "leave it out, and set `gradient_checkpointing=true` in the recipe",
        )
    if told("FSDP_OFFLOAD_PARAMS", "false").lower() == "true":
        raise BadInputError(
            "FSDP's offloading to the CPU cannot train here: parameters are looked for where the images are",
            "leave it out, and save memory with `gradient_checkpointing=true` or a smaller `batch_size`",
        )


def overruled(config: TrainingConfig) -> list[str]:
    """Return in words what `accelerate launch` was told of this training and the recipe says otherwise: it holds."""
    found = []
    for variable, nothing, key, own in (
        ("MIXED_PRECISION", "no", "precision", config.precision),
        ("GRADIENT_ACCUMULATION_STEPS", "1", "gradient_accumulation", str(config.gradient_accumulation)),
        ("DYNAMO_BACKEND", "NO", "compile", "INDUCTOR" if config.compile else "NO"),
    ):
        told = os.environ.get(f"ACCELERATE_{variable}", nothing)
        if told not in (nothing, own):
            found.append(
                f"the launcher's {key} ({told.lower()}) is not taken: the recipe's {key} ({own.lower()}) holds"
            )
    return found


def device() -> torch.device:
    """Return where this process trains: its own GPU where there is one."""
    return group().device


def wait_for_everyone() -> None:
    """Return when all processes of the group have come here."""
    if group().num_processes > 1:
        import torch

        with naming_lost_process():
            torch.distributed.barrier(_waiting_room())


@cache
def _waiting_room() -> torch.distributed.ProcessGroup:
    """Return the group of all processes in which they wait for the main one, on CPUs so that no GPU spins."""
    import torch

    return torch.distributed.new_group(backend="gloo", timeout=LONG_PATIENCE)


@contextmanager
def main_first() -> Iterator[None]:
    """Have the main process run the block before the others, which then find its work done. Not to be nested.

    All join the group before it and leave the block together: whoever is late to either would be given up on after
    PATIENCE, however long the work of the block may take.
    """
    group()
    if not is_main():
        wait_for_everyone()
    yield
    if is_main():
        wait_for_everyone()
    wait_for_everyone()


def tells(error: EdgeDiffError) -> bool:
    """Return whether this process has to word an error that ends it, so that what all of them met is worded once.

    The main one always has to. The others leave interruptions to it, and hold back anything else for as long as their
    launcher may need to end them after the main one: what they still live to tell, they met alone.
    """
    if is_main():
        return True
    if isinstance(error, InterruptedStageError):
        return False
    time.sleep(GRACE)
    return True


def leave() -> None:
    """Leave the group at the good end of a command; after a failure it is the launcher who ends what is left."""
    if group.cache_info().currsize:
        group().destroy_process_group()
        _waiting_room.cache_clear()
        group.cache_clear()


def anyone(flag: bool) -> bool:
    """Tell all processes of the group whether the flag is set in any of them."""
    if group().num_processes == 1:
        return flag
    import torch
    from accelerate.utils import reduce

    return bool(reduce(torch.tensor(float(flag), device=device()), "sum") > 0)


def of_all(value: T) -> list[T]:
    """Return the value (plain data) of every process of the group, in the order of their ranks."""
    if group().num_processes == 1:
        return [value]
    from accelerate.utils import gather_object

    return list(gather_object([value]))


def check_agreement(value: Mapping[str, Any]) -> None:
    """Raise BadInputError unless all processes of the group came here with the same value (plain data)."""
    if any(other != value for other in of_all(value)):
        raise BadInputError(
            "the processes of this training do not agree on what to train from where",
            "give all of them the same command, and a run folder that every machine sees",
        )


def accelerator(gradient_accumulation: int) -> Accelerator:
    """Return what spreads a model over the group: DistributedDataParallel or FSDP, as the launcher was told.

    Where the launcher and the recipe both have a say (precision, accumulation, compilation), the recipe's holds.
    Precision is not Accelerate's business here: it fixes one for the life of a process, and would leave out the
    teacher, which runs outside the prepared model.
    """
    group()
    from accelerate import Accelerator
    from accelerate.utils import DistributedType, GradientAccumulationPlugin

    found = Accelerator(
        device_placement=False,
        mixed_precision="no",
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=gradient_accumulation),
        dynamo_backend="no",
    )
    if found.distributed_type == DistributedType.FSDP:
        found.state.fsdp_plugin.cpu_ram_efficient_loading = False  # it fails on buffers; all have loaded the weights
    return found


@contextmanager
def naming_lost_process() -> Iterator[None]:
    """Turn a failed exchange with the other processes, in the enclosed block, into a StageFailedError.

    Gloo raises plain RuntimeErrors that name it, NCCL errors of torch.distributed's own.
    """
    try:
        yield
    except RuntimeError as error:
        from torch.distributed import DistError, is_initialized

        if not is_initialized():
            raise
        if not isinstance(error, DistError) and "gloo" not in str(error):
            raise
        raise StageFailedError(
            "another process of this training ended, or did not answer",
            "see what it said, and run the same command again with `--resume`: the last saved state is whole",
        ) from error
