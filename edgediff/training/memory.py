"""What does not fit into memory, in one sentence and with what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from edgediff.errors import StageFailedError
from edgediff.recipe import TrainingConfig

CPU_ALLOCATOR = "DefaultCPUAllocator"  # raises plain RuntimeErrors that name it


@contextmanager
def naming_full_memory(what: str, hint: str) -> Iterator[None]:
    """Turn what PyTorch raises in the enclosed block when memory is full into a StageFailedError.

    Args: what: memory does not hold: `a training step of batch_size 64`.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and CPU_ALLOCATOR not in str(error):
            raise
        raise StageFailedError(f"memory does not hold {what}", hint) from error


def of_a_step(config: TrainingConfig) -> tuple[str, str]:
    """Return what `naming_full_memory` says of a training step."""
    remedies = []
    if config.batch_size > 1:
        remedies.append("a smaller `batch_size` and as much more `gradient_accumulation`")
    if not config.gradient_checkpointing:
        remedies.append("`gradient_checkpointing=true`")
    return (
        f"a training step of batch_size {config.batch_size}",
        f"run the same command again with `--resume` and {', or '.join(remedies or ['more memory'])}",
    )
