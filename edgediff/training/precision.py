"""The arithmetic of a training step: fp32, or autocast to bf16 or fp16."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from edgediff.errors import BadInputError

HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def check_precision(precision: str, device: torch.device) -> None:
    """Raise BadInputError for a precision in which this device does not train."""
    if precision == "fp16" and device.type != "cuda":
        raise BadInputError(
            f"precision fp16 trains on NVIDIA GPUs only, and this training runs on: {device.type}",
            "choose `precision=bf16`, which needs no loss scaling, or `precision=fp32`",
        )


@contextmanager
def autocast(precision: str, device: torch.device) -> Iterator[None]:
    """Run the enclosed forward (and its backward) in `precision`: `fp32`, `bf16` or `fp16`.

    On a CPU, bf16 goes with the plain attention kernel: the backward of the flash kernel in bf16 takes longer than
    all convolutions of a small U-Net together (0.80 s of a 1.35 s step; with the plain kernel the step is 0.76 s).
    """
    if precision == "fp32":
        yield
        return
    with torch.autocast(device.type, dtype=HALVES[precision]):
        if device.type == "cpu":
            with sdpa_kernel(SDPBackend.MATH):
                yield
        else:
            yield
