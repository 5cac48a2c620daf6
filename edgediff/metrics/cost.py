"""What a network costs before any clock runs: parameters, bytes, multiply-accumulates."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from edgediff.families import Config, Family
from edgediff.results import Cost


def _cpu_attention_flops(query: torch.Size, key: torch.Size, value: torch.Size, *args: Any, **kwargs: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _norm_flops(x: torch.Size, *args: Any, **kwargs: Any) -> int:
    return 2 * NORM_MACS * math.prod(x)


NORM_MACS = 5  # of one element: mean, variance, division, scale and shift, as fvcore counts them

COUNTED = {
    # PyTorch's counter knows its GPU attention kernels but not the one for the CPU, and no norms.
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _cpu_attention_flops,
    torch.ops.aten.native_layer_norm: _norm_flops,
    torch.ops.aten.native_group_norm: _norm_flops,
}

Operator = Literal["weights", "attention", "layer_norm", "group_norm"]
"""What multiplies: convolutions and linears, attention's two products, norms."""


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
    return _usual(_counted(lambda: module(**example_inputs)))


def prediction_macs(family: Family, model: nn.Module, inputs: Mapping[str, Tensor]) -> int:
    """Return the `macs` of one prediction of a family's model, from the inputs that the family names."""
    return _usual(_counted(lambda: family.prediction(model, **inputs)))


def module_macs(family: Family, model: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, int]:
    """Return the `macs` of one prediction inside every module that has any, by its name; "" is the whole model."""
    counted = _counter(lambda: family.prediction(model, **inputs)).get_flop_counts()
    root = type(model).__name__
    return {
        "" if name == "Global" else name.removeprefix(root).removeprefix("."): _usual(_by_kind(flops))
        for name, flops in counted.items()
        if name != root
    }


def macs_by_operator(family: Family, config: Config) -> dict[Operator, int]:
    """Return the multiply-accumulates of one forward of one image by what does them.

    Papers count with tools that know different operators, so their figures are sums of different ones of these.
    """
    inputs = family.example_inputs(config, device="meta")
    return dict(_counted(lambda: family.prediction(family.build(config, "meta"), **inputs)))


def _counted(forward: Callable[[], Any]) -> Counter[Operator]:
    return _by_kind(_counter(forward).get_flop_counts()["Global"])


def _counter(forward: Callable[[], Any]) -> FlopCounterMode:
    counter = FlopCounterMode(display=False, custom_mapping=COUNTED)
    with torch.no_grad(), counter:
        forward()
    return counter


def _by_kind(flops: Mapping[Any, int]) -> Counter[Operator]:
    found: Counter[Operator] = Counter()
    for operator, count in flops.items():
        found[_kind(str(operator))] += count // 2
    return found


def _usual(counted: Counter[Operator]) -> int:
    return counted["weights"] + counted["attention"]


def _kind(operator: str) -> Operator:
    if "layer_norm" in operator:
        return "layer_norm"
    if "group_norm" in operator:
        return "group_norm"
    # A matrix product of two batches is attention's wherever it is written out.
    return "attention" if "attention" in operator or "bmm" in operator else "weights"


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
