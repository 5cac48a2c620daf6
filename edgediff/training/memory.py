"""A training step that does not fit into memory, in one sentence and with what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from edgediff.errors import StageFailedError

CPU_ALLOCATOR = "DefaultCPUAllocator"  # raises plain RuntimeErrors that name it


@contextmanager
def naming_full_memory(batch_size: int) -> Iterator[None]:
    """Turn what PyTorch raises in the enclosed block when memory is full into a StageFailedError.

    Args: batch_size: samples of one forward.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        full = isinstance(error, torch.OutOfMemoryError | MemoryError) or CPU_ALLOCATOR in str(error)
        if not full:
            raise
        smaller = "a smaller `batch_size` with as much more `gradient_accumulation`, " if batch_size > 1 else ""
        raise StageFailedError(
            f"memory does not hold a training step of batch_size {batch_size}",
            f"run the same command again with `--resume` and {smaller}or with `gradient_checkpointing=true`; it trains "
            "the same",
        ) from error
