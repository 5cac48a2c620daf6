"""How much each block matters: one contract, `(probe) → importance of every block`, for every measure.

The larger, the more the block matters; importances of one measure compare with one another and with no other's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from edgediff.errors import BadInputError
from edgediff.pruning.blocks.probe import BlockProbe, finite
from edgediff.pruning.blocks.streams import map_streams
from edgediff.pruning.depth import without

BlockImportance = dict[str, float]
"""Removable block → importance, in the order in which the blocks run."""


@dataclass(frozen=True)
class BlockMeasure:
    """A measure of blocks and what it costs.

    Args: measure: see the module.
          looks_at: what has to be there: nothing but the config, the weights, or calibration images too.
          per_cost: compare importance by what a block costs, where the budget is one of parameters or MACs.
          needs_count: the choice depends on how many blocks go.
          full_passes, block_passes: forwards of the calibration images over all timesteps, and as many for each block.
    """

    measure: Callable[[BlockProbe], BlockImportance]
    looks_at: Literal["config", "weights", "images"]
    per_cost: bool = False
    needs_count: bool = False
    full_passes: int = 0
    block_passes: int = 0


def first(probe: BlockProbe) -> BlockImportance:
    """Return the position: the first blocks go."""
    return {block: float(i) for i, block in enumerate(probe.blocks)}


def last(probe: BlockProbe) -> BlockImportance:
    """Return the position from the end: the last blocks go."""
    return {block: -float(i) for i, block in enumerate(probe.blocks)}


def evenly(probe: BlockProbe) -> BlockImportance:
    """Return the distance from the nearest of `count` evenly spaced places: blocks go everywhere alike."""
    total, count = len(probe.blocks), max(probe.count, 1)
    places = [int((i + 0.5) * total / count) for i in range(count)]
    return {block: float(min(abs(i - place) for place in places)) for i, block in enumerate(probe.blocks)}


def random(probe: BlockProbe) -> BlockImportance:
    """Return uniform draws in [0, 1) from `probe.seed`: the baseline that every measure has to beat."""
    draws = torch.rand(len(probe.blocks), generator=torch.Generator().manual_seed(probe.seed))
    return dict(zip(probe.blocks, draws.tolist(), strict=True))


def magnitude(probe: BlockProbe) -> BlockImportance:
    """Return the mean squared weight of each block; the mean, so that blocks of any size compare."""
    importance = {}
    for block in probe.each():
        weights = [weight for module in _modules(probe.weights(), block) for weight in module.parameters()]
        total = sum(weight.square().sum(dtype=torch.float64).item() for weight in weights)
        importance[block] = finite(total / sum(weight.numel() for weight in weights), block)
    return importance


def block_influence(probe: BlockProbe) -> BlockImportance:
    """Return 1 − cos(input, output) of each block, over all positions and timesteps (ShortGPT, Men et al. 2024).

    A token of a transformer and a pixel of a map are one position each, a vector over channels. Of modules that only
    go together those count whose input and output have one shape.

    Raises: BadInputError for a block without such a module.
    """
    model, images = probe.weights(), probe.images()
    influence: dict[str, list[Tensor]] = {block: [] for block in probe.blocks}

    def look(block: str, before: Tensor, after: Tensor) -> Tensor:
        if before.shape == after.shape:
            channels = 1 if before.ndim == 4 else -1
            influence[block].append(1 - nn.functional.cosine_similarity(before, after, dim=channels).mean())
        return after

    with _hooked(model, probe.blocks, look):
        for timestep in images.timesteps():
            images.prediction(model, timestep)
            probe.on_step()
    for block, seen in influence.items():
        if not seen:
            raise BadInputError(
                f"block_influence needs blocks whose input and output have one shape, not so: {block}",
                "use laptop_diff or oracle, which compare whole models",
            )
    return {block: finite(torch.stack(seen).mean().item(), block) for block, seen in influence.items()}


def oracle(probe: BlockProbe) -> BlockImportance:
    """Return how much the denoising loss grows, averaged over timesteps, in the stock model without the block."""
    model, images = probe.weights(), probe.images()
    timesteps = images.timesteps()

    def loss(candidate: ModelMixin) -> float:
        return sum(images.loss(candidate, timestep).item() for timestep in timesteps) / len(timesteps)

    whole = loss(model)
    return {block: finite(loss(without(model, probe.family, {block})) - whole, block) for block in probe.each()}


def laptop_diff(probe: BlockProbe) -> BlockImportance:
    """Return E‖prediction without the block − prediction‖², over timesteps (LAPTOP-Diff, Zhang et al. 2024).

    Distortions of single removals nearly add up, as the paper finds, so their sum ranks sets of blocks in one shot: to
    choose a set is a knapsack, which `choice` fills greedily by distortion per parameter (or MAC) saved.
    """
    model, images = probe.weights(), probe.images()
    expected = {timestep: images.prediction(model, timestep) for timestep in images.timesteps()}

    def distortion(candidate: ModelMixin) -> float:
        losses = [
            nn.functional.mse_loss(images.prediction(candidate, timestep), prediction)
            for timestep, prediction in expected.items()
        ]
        return torch.stack(losses).mean().item()

    return {block: finite(distortion(without(model, probe.family, {block})), block) for block in probe.each()}


BLOCK_MEASURES: dict[str, BlockMeasure] = {
    "first": BlockMeasure(first, "config"),
    "last": BlockMeasure(last, "config"),
    "evenly": BlockMeasure(evenly, "config", needs_count=True),
    "random": BlockMeasure(random, "config"),
    "magnitude": BlockMeasure(magnitude, "weights"),
    "block_influence": BlockMeasure(block_influence, "images", full_passes=1),
    "oracle": BlockMeasure(oracle, "images", full_passes=1, block_passes=1),
    "laptop_diff": BlockMeasure(laptop_diff, "images", per_cost=True, full_passes=1, block_passes=1),
}


def _modules(model: nn.Module, block: str) -> list[nn.Module]:
    return [model.get_submodule(name) for name in block.split("+")]


@contextmanager
def _hooked(model: nn.Module, blocks: tuple[str, ...], look: Callable[[str, Tensor, Tensor], Tensor]) -> Iterator[None]:
    """Call `look(block, before, after)` for every residual stream of the blocks' modules, inside the context only."""

    def hook_of(block: str) -> Callable[..., Any]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            return map_streams(lambda before, after: look(block, before, after), args, kwargs, output)

        return hook

    handles = [
        module.register_forward_hook(hook_of(block), with_kwargs=True)
        for block in blocks
        for module in _modules(model, block)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
