"""What a network costs before any clock runs: parameters, bytes, multiply-accumulates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from edgediff.families import Config, Family
from edgediff.results import Cost


def _cpu_attention_flops(query: torch.Size, key: torch.Size, value: torch.Size, *args: Any, **kwargs: Any) -> int:
    return sdpa_flop_count(query, key, value)


# PyTorch's counter knows its GPU attention kernels but not the one for the CPU.
CPU_ATTENTION = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _cpu_attention_flops}


def parameter_count(module: nn.Module) -> int:
    """Return the number of parameters; shared ones count once."""
    return sum(parameter.numel() for parameter in module.parameters())


def parameter_bytes(module: nn.Module) -> int:
    """Return the bytes that the parameters take in their own precision; shared ones count once."""
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())


def macs(module: nn.Module, example_inputs: Mapping[str, Any]) -> int:
    """Return the multiply-accumulates of one forward: convolutions, linears, matrix products and attention.

    1 MAC = 2 FLOPs. Element-wise work, normalisation and biases are not counted, as is usual. Module and inputs on
    the `meta` device cost no computation and give the same count.

    Args: example_inputs: keyword arguments of the forward; the batch size multiplies the result.
    """
    return _counted(lambda: module(**example_inputs))


def prediction_macs(family: Family, model: nn.Module, inputs: Mapping[str, Tensor]) -> int:
    """Return the `macs` of one prediction of a family's model, from the inputs that the family names."""
    return _counted(lambda: family.prediction(model, **inputs))


def module_macs(family: Family, model: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, int]:
    """Return the MACs of one prediction inside every module that has any, by its name; "" is the whole model."""
    counter = _counter(lambda: family.prediction(model, **inputs))
    root = type(model).__name__
    counts = {name: sum(flops.values()) // 2 for name, flops in counter.get_flop_counts().items() if name != "Global"}
    return {name.removeprefix(root).removeprefix("."): count for name, count in counts.items()} | {
        "": counter.get_total_flops() // 2
    }


def _counted(forward: Callable[[], Any]) -> int:
    return _counter(forward).get_total_flops() // 2


def _counter(forward: Callable[[], Any]) -> FlopCounterMode:
    counter = FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION)
    with torch.no_grad(), counter:
        forward()
    return counter


def model_cost(family: Family, config: Config) -> Cost:
    """Return what a model of this config costs: parameters, MACs of one forward of one image, bytes in float32.

    Counted on the `meta` device: it costs no memory and does not care where a loaded model is.
    """
    model = family.build(config, "meta")
    return Cost(
        params=parameter_count(model),
        macs=prediction_macs(family, model, family.example_inputs(config, device="meta")),
        bytes=parameter_bytes(model),
    )
