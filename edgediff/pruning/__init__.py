"""What a student keeps: which blocks (`blocks`, `learned_depth`), and of how many channels (`targets`) which ones.

How many channels a budget leaves is looked for in `edgediff.budgets`. They are scored in `importance`. The cuts
themselves are in `depth` and `width`; `svs` refines what they leave.
"""

from edgediff.pruning.blocks import (
    BLOCK_MEASURES,
    BlockImportance,
    block_importance,
    choose_blocks,
    foreseen_cut,
    forwards,
    measurements,
    published_cut,
    removal_count,
)
from edgediff.pruning.depth import DepthReport, prune_depth
from edgediff.pruning.importance import IMPORTANCES, Importance, Scores, importance_scores, timesteps
from edgediff.pruning.learned_depth import LearnedDepth, check_learnable, learn_depth
from edgediff.pruning.svs import refine
from edgediff.pruning.targets import check_reached, widths_for_ratio, widths_in_order
from edgediff.pruning.width import GroupCut, WidthReport, prune_width

__all__ = [
    "BLOCK_MEASURES",
    "IMPORTANCES",
    "BlockImportance",
    "DepthReport",
    "GroupCut",
    "Importance",
    "LearnedDepth",
    "Scores",
    "WidthReport",
    "block_importance",
    "check_learnable",
    "check_reached",
    "choose_blocks",
    "foreseen_cut",
    "forwards",
    "importance_scores",
    "learn_depth",
    "measurements",
    "prune_depth",
    "prune_width",
    "published_cut",
    "refine",
    "removal_count",
    "timesteps",
    "widths_for_ratio",
    "widths_in_order",
]
