"""Which channels stay or go together: the vocabulary of width pruning, and how tracing finds it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch_pruning
from diffusers.models.activations import GEGLU
from diffusers.models.attention_processor import Attention, AttnProcessor
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

Buffers = tuple[tuple[str, int], ...]
"""(tensor's name, axis) pairs."""

OUT, IN = 0, 1  # axes of the weights of linear layers and ungrouped convolutions


@dataclass(frozen=True)
class Member:
    """One module's share of a group: which of its input or output channels belong to which channel of the group.

    Several channels of a module may belong to one of the group: the two halves of a gated projection, the chunks of an
    adaptive norm.

    Args: module: its name. axis: `OUT` or `IN`. channels: (module's channel, group's channel) pairs.
    """

    module: str
    axis: int
    channels: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Group:
    """Channels that stay or go together, named after the first module that produces them.

    Args: buffers: stored tensors that are cut along the channels too, but have no importance, as nothing learns them.
          spread: whether those that stay must be spread evenly over the row, because a channel's place has a meaning.
    """

    name: str
    width: int
    members: tuple[Member, ...]
    buffers: Buffers = ()
    spread: bool = False

    @property
    def copies(self) -> int:
        """How many channels of the module `name` stand for one of the group: 2 in a gated projection."""
        produced = next(member for member in self.members if (member.module, member.axis) == (self.name, OUT))
        return len(produced.channels) // self.width


def traced_groups(
    model: ModelMixin, inputs: Mapping[str, Tensor], fixed: Sequence[str], predict: Callable[..., Tensor]
) -> list[Group]:
    """Return the groups of coupled channels that the dependency graph of a model finds, in the order of its modules.

    The graph is that of Torch-Pruning (Fang et al. 2023). Coupling depends on the config alone, so a model and inputs
    on the `meta` device serve. The model's attention processors are replaced: the default ones hide their matrix
    products from the tracer.

    Args: fixed: modules whose output channels are never pruned. predict: (model, **inputs) → prediction.
    """
    for module in model.modules():
        if isinstance(module, Attention):
            module.set_processor(AttnProcessor())
    names = {module: name for name, module in model.named_modules()}
    order = {name: i for i, name in enumerate(names.values())}
    with torch.enable_grad():  # the tracer walks the autograd graph
        graph = torch_pruning.DependencyGraph().build_dependency(
            model,
            example_inputs=dict(inputs),
            forward_fn=lambda model, inputs: predict(model, **inputs),
            verbose=False,
        )
    ignored = [model.get_submodule(name) for name in fixed]
    groups = []
    for items in graph.get_all_groups(ignored_layers=ignored, root_module_types=[nn.Conv2d, nn.Linear]):
        width = len(items[0].idxs)
        if isinstance(model.get_submodule(names[items[0].dep.target.module].rpartition(".")[0]), GEGLU):
            width //= 2  # the tracer counts values and gates apart
        members = []
        for item in items:
            if item.dep.target.module in names:  # the rest are operations such as concatenations
                axis = OUT if graph.is_out_channel_pruning_fn(item.dep.handler) else IN
                pairs = tuple((own, shared % width) for own, shared in zip(item.idxs, item.root_idxs, strict=True))
                members.append(Member(names[item.dep.target.module], axis, pairs))
        # The tracer's order varies with memory addresses; sums of floats, and so ties, must not.
        members.sort(key=lambda member: (order[member.module], member.axis))
        producers = (
            member.module
            for member in members
            if member.axis == OUT and isinstance(model.get_submodule(member.module), (nn.Conv2d, nn.Linear))
        )
        groups.append(Group(next(producers), width, tuple(members)))
    return sorted(groups, key=lambda group: order[group.name])
