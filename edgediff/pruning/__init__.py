"""Which channels a student keeps: how wide (`targets`), which ones (`importance`), and the cut itself (`width`)."""

from edgediff.pruning.importance import IMPORTANCES, Importance, Scores, importance_scores, timesteps
from edgediff.pruning.targets import check_reached, target_widths, widths_for_macs, widths_for_params, widths_for_ratio
from edgediff.pruning.width import GroupCut, WidthReport, prune_width

__all__ = [
    "IMPORTANCES",
    "GroupCut",
    "Importance",
    "Scores",
    "WidthReport",
    "check_reached",
    "importance_scores",
    "prune_width",
    "target_widths",
    "timesteps",
    "widths_for_macs",
    "widths_for_params",
    "widths_for_ratio",
]
