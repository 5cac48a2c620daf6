"""The objectives of training: one file an idea, one registry of the distillation losses by recipe name.

Every loss is a value a sample, (B,); weights of timesteps and the mean over the batch are the caller's. Prediction
losses compare (B, C, *spatial) predictions and return `KDTerms`, feature losses compare lists of feature maps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from edgediff.losses.attention import attention
from edgediff.losses.diffusion import diffusion
from edgediff.losses.dist import dist
from edgediff.losses.feature import feature
from edgediff.losses.fit import fit
from edgediff.losses.lift import lift
from edgediff.losses.masked_feature import masked_feature
from edgediff.losses.multi_scale import multi_scale
from edgediff.losses.output import output
from edgediff.losses.place import place
from edgediff.losses.terms import KDTerms, Reduction, squared_error
from edgediff.recipe import KD_PRESETS as PRESETS


@dataclass(frozen=True)
class Loss:
    """A distillation loss as the training calls it: `function(student, teacher, reduction=...)`, settings bound.

    A "prediction" function takes two predictions and returns `KDTerms`, a "feature" function takes two sequences of
    feature maps and returns (B,). `adapters`: the student's maps have to go through `Adapters` first.
    """

    kind: Literal["prediction", "feature"]
    function: Callable[..., Any]
    paper: str
    adapters: bool = False


LOSSES: dict[str, Loss] = {
    "output": Loss("prediction", output, "Hinton, Vinyals, Dean 2015, arXiv 1503.02531"),
    "lift": Loss("prediction", lift, "Han, Yeo, Yoo, CVPR 2026, arXiv 2605.19729"),
    "place": Loss("prediction", place, "Han, Yeo, Yoo, CVPR 2026, arXiv 2605.19729"),
    "multi_scale": Loss("prediction", multi_scale, "Hoogeboom, Heek, Salimans, ICML 2023, arXiv 2301.11093"),
    "dist": Loss("prediction", dist, "Huang et al., NeurIPS 2022, arXiv 2205.10536"),
    "feature": Loss("feature", feature, "Romero et al., ICLR 2015, arXiv 1412.6550", adapters=True),
    "attention": Loss("feature", attention, "Zagoruyko, Komodakis, ICLR 2017, arXiv 1612.03928"),
    "masked_feature": Loss("feature", masked_feature, "Fang et al., CVPR 2025, arXiv 2412.01199", adapters=True),
}

__all__ = [
    "LOSSES",
    "PRESETS",
    "KDTerms",
    "Loss",
    "Reduction",
    "attention",
    "diffusion",
    "dist",
    "feature",
    "fit",
    "lift",
    "masked_feature",
    "multi_scale",
    "output",
    "place",
    "squared_error",
]
