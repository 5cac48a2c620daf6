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


@dataclass(frozen=True)
class Loss:
    """A distillation loss as the training calls it: `function(student, teacher, reduction=...)`, settings bound.

    A "prediction" function takes two predictions and returns `KDTerms`, a "feature" function takes two sequences of
    feature maps and returns (B,). `adapters`: the student's maps have to go through `Adapters` first. `scale_free`: it
    does not grow with the predictions' errors, in whatever space they are.
    """

    kind: Literal["prediction", "feature"]
    function: Callable[..., Any]
    adapters: bool = False
    scale_free: bool = False


LOSSES: dict[str, Loss] = {
    "output": Loss("prediction", output),
    "lift": Loss("prediction", lift),
    "place": Loss("prediction", place),
    "multi_scale": Loss("prediction", multi_scale),
    "dist": Loss("prediction", dist, scale_free=True),
    "feature": Loss("feature", feature, adapters=True, scale_free=True),
    "attention": Loss("feature", attention, scale_free=True),
    "masked_feature": Loss("feature", masked_feature, adapters=True, scale_free=True),
}

__all__ = [
    "LOSSES",
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
