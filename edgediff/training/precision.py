"""The arithmetic of a training step: fp32, or autocast to bf16 or fp16."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from edgediff.errors import BadInputError
from edgediff.recipe import TrainingConfig

HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


BF16_UNITS = ("amx_bf16", "avx512_bf16", "sve_bf16", "bf16")  # as PyTorch names what x86 and Arm processors have


def settled(config: TrainingConfig, device: torch.device) -> TrainingConfig:
    """Return the config with `auto` replaced by the precision that suits the device.

    A processor without units for bf16 emulates it: ten times slower than fp32 on an EPYC with AVX2 only.
    """
    if config.precision != "auto":
        return config
    if device.type == "cuda":
        has_units = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities = torch.cpu.get_capabilities()
        has_units = any(capabilities.get(unit) for unit in BF16_UNITS)
    return config.model_copy(update={"precision": "bf16" if has_units else "fp32"})


def check_precision(precision: str, device: torch.device) -> None:
    """Raise BadInputError for a precision in which this device does not train."""
    if precision == "fp16" and device.type != "cuda":
        raise BadInputError(
            f"precision fp16 trains on NVIDIA GPUs only, and this training runs on: {device.type}",
            "choose `precision=bf16`, which needs no loss scaling, or `precision=fp32`",
        )


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Run the enclosed forward in `precision`: `fp32`, `bf16` or `fp16`."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=HALVES[precision])


def attention_kernel(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Choose the kernel of attention for the enclosed forwards and backwards, where checkpointing runs forwards again.

    On a CPU, bf16 goes with the plain kernel: the backward of the flash kernel in bf16 takes longer than all
    convolutions of a small U-Net together (0.80 s of a 1.35 s step; with the plain kernel the step is 0.76 s).
    """
    return sdpa_kernel(SDPBackend.MATH) if precision != "fp32" and device.type == "cpu" else nullcontext()
