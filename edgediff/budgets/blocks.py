"""What a forward is made of: blocks of the kinds that a device can be timed on, and the work in each."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from edgediff.families import Config, Family
from edgediff.metrics.cost import module_macs

REST = ""  # the block of all that is in no other: first and last layers, time embedding, concatenations


@dataclass(frozen=True)
class Work:
    """What one block has to do for one image.

    Args: kind: class, number of weight tensors, places (pixels or tokens); blocks of one kind differ in width only.
          elements: values that its layers put out.
          macs: multiply-accumulates.
          params: parameters.
    """

    kind: str
    elements: int
    macs: int
    params: int


def block_of(family: Family, module: str) -> str:
    """Return the innermost block that a module is in, or is: `down_blocks.0.resnets.1`; `REST` where it is in none."""
    found = re.match(rf"(?:.*\.)?(?:{'|'.join(family.block_lists)})\.\d+(?=\.|$)", module)
    return found[0] if found else REST


def lies_in(block: str, removed: str) -> bool:
    """Return whether a block goes with a removable block (one or more modules, joined by `+`)."""
    return any(f"{block}.".startswith(f"{module}.") for module in removed.split("+"))


def work(family: Family, config: Config) -> Mapping[str, Work]:
    """Return the work of every block of a model, by name, at the config's own sample size; counted on `meta`."""
    return _counted(family, json.dumps({key: value for key, value in config.items() if not key.startswith("_")}))


@cache  # a plan and the pruning that follows it ask for the same students
def _counted(family: Family, content: str) -> Mapping[str, Work]:
    """Return the `work` of a config that is given as JSON."""
    config: Config = json.loads(content)
    model = family.build(config, "meta").eval()
    kinds: dict[str, str] = {REST: "rest"}
    elements: Counter[str] = Counter()

    def kind(block: str, module: nn.Module, inputs: Any, output: Any) -> None:
        tensor = output if isinstance(output, Tensor) else next(value for value in output if value is not None)
        places = math.prod(tensor.shape[2:]) if tensor.ndim == 4 else math.prod(tensor.shape[1:-1])
        own = sum(1 for name, _ in module.named_parameters() if block_of(family, f"{block}.{name}") == block)
        kinds[block] = f"{type(module).__name__} with {own} tensors at {places} places"

    def count(block: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            elements[block] += output.numel()

    for name, module in model.named_modules():
        block = block_of(family, name)
        if name and name == block:
            module.register_forward_hook(partial(kind, block))
        if not list(module.children()):
            module.register_forward_hook(partial(count, block))
    with torch.no_grad():
        inside = module_macs(family, model, family.example_inputs(config, device="meta"))
    macs = {block: inside.get(block, 0) for block in kinds}
    for block in macs:  # those of a block do not count again for the one around it, nor for the rest
        if block != REST:
            parents = [other for other in macs if other != block and block.startswith(f"{other}." if other else "")]
            macs[max(parents, key=len)] -= inside.get(block, 0)
    params: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        params[block_of(family, name)] += parameter.numel()
    return {block: Work(kinds[block], elements[block], macs[block], params[block]) for block in kinds}
