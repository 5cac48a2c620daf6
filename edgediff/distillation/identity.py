"""What of a recipe decides how a student comes out, which training a state is of, and whose targets a cache holds.

Three answers to one question, side by side: a new key belongs into each of them, or is left out of it knowingly. What
only says where things lie, or how a training is watched, decides nothing (`WATCHING`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgediff.artifacts import digest, without
from edgediff.diffusion import schedule
from edgediff.distillation.targets import uses_features
from edgediff.model_folder import Loaded
from edgediff.recipe import DISTILL_WATCHING, PLACES, TWO_PART_LOSSES, DistillConfig, Recipe
from edgediff.training import processes
from edgediff.training.batches import TOLD
from edgediff.training.precision import settled

# Of objectives that were others under the same recipe before: their students are stale, their states are not gone on
# with.
PLACES_COMPARED = "added up over places, a block with one block"
REVISION = 2  # of what `_revised` tells
WATCHING = (*(f"distill.{name}" for name in DISTILL_WATCHING), *PLACES)  # keys of `of_student`


def of_student(recipe: Recipe) -> dict[str, Any]:
    """Return what of a recipe decides how the student comes out, and how its training is watched."""
    # Of teachers and caches the inputs hold hashes: where they lie decides nothing.
    own = recipe.distill.model_dump(mode="json", exclude={"teachers": True, "cache": {"folder"}})
    if uses_features(recipe.distill):
        own["feature_losses"] = PLACES_COMPARED
    if _revised(recipe.distill):
        own["revision"] = REVISION
    return {"distill": own, "data": recipe.data.model_dump(mode="json")}


def _revised(config: DistillConfig) -> bool:
    """Tell whether a loss or a target of this config is computed otherwise than it was."""
    learnable = config.place.fine_weight == "learnable" and set(config.kd) & set(TWO_PART_LOSSES)
    return bool("dist" in config.kd or learnable or (config.kd and config.x0_threshold == "dynamic"))


def of_training(recipe: Recipe, inputs: Mapping[str, str]) -> dict[str, Any]:
    """Return what a training's state depends on beside `distill.training`, which the loop itself looks at.

    Args: inputs: hashes of teachers, pruned model and images, by name.
    """
    config = of_student(recipe)["distill"]
    return {
        "distill": without(config, ("training", *DISTILL_WATCHING)),
        "data": recipe.data.model_dump(include=TOLD),
        **inputs,
    }


def of_targets(recipe: Recipe, teachers: Sequence[Loaded], student: Loaded) -> dict[str, str]:
    """Return `target_source` of loaded models."""
    own = schedule.prediction_type(student.scheduler)
    return target_source(recipe, [of.sha256 for of in teachers], [of.scheduler for of in teachers], own)


def target_source(recipe: Recipe, hashes: Sequence[str], schedulers: Sequence[Any], own: str) -> dict[str, str]:
    """Return what targets in a cache depend on beside images: who says them, of which noise, and how exactly.

    Args: hashes, schedulers: of every teacher; own: what the student predicts.
    """
    config = recipe.distill
    exact = converted(config, schedulers, own)
    return {
        "teacher": "+".join(hashes),
        "scheduler": digest(schedule.described(schedulers[0])),
        "told": digest([recipe.data.conditioning_dropout, recipe.data.random_conditioning]),
        "seed": str(config.cache.seed),
        "precision": "fp32" if exact else settled(config.training, processes.device()).precision,
    }


def converted(config: DistillConfig, schedulers: Sequence[Any], own: str) -> bool:
    """Tell whether what teachers say is converted before it is compared, which amplifies the rounding of halves."""
    return {schedule.prediction_type(of) for of in schedulers} != {config.kd_space or own}
