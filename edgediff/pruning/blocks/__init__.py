"""Which blocks a student does without: how much each matters (`methods`) and which set goes (`choice`)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from edgediff.errors import BadInputError, nearest
from edgediff.families import Family
from edgediff.pruning.blocks.choice import choose_blocks, foreseen_cut, published_cut, removal_count
from edgediff.pruning.blocks.methods import BLOCK_MEASURES, BlockImportance, BlockMeasure
from edgediff.pruning.blocks.probe import TIMESTEPS, BlockProbe, Calibration

__all__ = [
    "BLOCK_MEASURES",
    "BlockImportance",
    "BlockMeasure",
    "block_importance",
    "choose_blocks",
    "foreseen_cut",
    "forwards",
    "measurements",
    "published_cut",
    "removal_count",
]


@torch.no_grad()
def block_importance(
    name: str,
    model: ModelMixin,
    family: Family,
    *,
    x0: Tensor | None = None,
    scheduler: Any = None,
    conditioning: Mapping[str, Tensor] | None = None,
    count: int = 0,
    seed: int = 0,
    on_step: Callable[[], None] = lambda: None,
) -> BlockImportance:
    """Return the importance of every removable block of a model, which is left untouched.

    Works on a float32 copy in evaluation mode, as `importance_scores` does.

    Args: name: one of `BLOCK_MEASURES`.
          x0: (B, C, H, W) clean images in [-1, 1] or latents, for the measures that look at images.
          scheduler: the teacher's noise schedule.
          conditioning: further arguments of the forward, one row per image.
          count: how many blocks will go, for `evenly`.
          seed: of `random`, and of the one noise on x0 that serves all timesteps.
          on_step: called after every measurement, at most `measurements` times.

    Raises: BadInputError for an unknown name, missing images or schedule, or a model that a measure does not suit;
    StageFailedError naming the first block whose importance is not finite.
    """
    if name not in BLOCK_MEASURES:
        raise BadInputError(f"measure of blocks is unknown: {name}", nearest(name, BLOCK_MEASURES))
    measure = BLOCK_MEASURES[name]
    calibration, twin = None, None
    if measure.looks_at == "images":
        if x0 is None or scheduler is None:
            raise BadInputError(f"`{name}` needs clean images and a noise schedule", "give both, or use `magnitude`")
        calibration = Calibration(family, x0, scheduler, conditioning or {}, seed)
    if measure.looks_at != "config":
        twin = copy.deepcopy(model).float().eval()
    return measure.measure(BlockProbe(family, model.config, twin, calibration, count, seed, on_step))


def measurements(name: str, blocks: int) -> int:
    """Return how often a measure of that many blocks calls `on_step` at most."""
    measure = BLOCK_MEASURES[name]
    if measure.looks_at == "config":
        return 0
    return blocks if measure.block_passes or not measure.full_passes else TIMESTEPS


def forwards(name: str, blocks: int, num_images: int) -> int:
    """Return how many single images a measure puts through a model: what it costs, in forwards."""
    measure = BLOCK_MEASURES[name]
    return (measure.full_passes + measure.block_passes * blocks) * TIMESTEPS * num_images
