"""The verb `prune`: a teacher → a student of fewer channels, a stock pipeline filled with what the teacher keeps."""

from __future__ import annotations

from edgediff import data, model_folder, teacher
from edgediff.artifacts import atomic_folder, read_json, up_to_date, write_manifest
from edgediff.data.order import evenly
from edgediff.metrics.cost import model_cost
from edgediff.output import Output
from edgediff.pruning import (
    IMPORTANCES,
    check_reached,
    importance_scores,
    prune_width,
    target_widths,
    timesteps,
)
from edgediff.recipe import Recipe
from edgediff.results import Reached
from edgediff.run import Run


def prune(run: Run, recipe: Recipe, output: Output) -> Reached:
    """Write `run.pruned`, with what was asked and what was reached in its manifest.

    Raises: BadInputError for a target out of reach; StageFailedError naming the level when less was removed than asked.
    """
    source = teacher.resolve(recipe.teacher).folder
    config = {"prune": recipe.prune.model_dump(mode="json")}
    needs_data = IMPORTANCES[recipe.prune.importance].needs_data
    if needs_data:
        config["data"] = recipe.data.model_dump(mode="json")
    loaded = model_folder.load(source)
    images = data.load(recipe.data, "train", shape=loaded.sample_shape, output=output) if needs_data else None
    inputs = {"teacher": loaded.sha256, **({"images": images.sha256} if images else {})}
    if up_to_date(run.pruned, stage="prune", config=config, inputs=inputs):
        reached = Reached.model_validate(read_json(run.pruned / "manifest.json")["reached"])
        output.stage("prune", f"up to date: {_sentence(reached)}")
        return reached

    family, before = loaded.family, loaded.model.config
    widths = target_widths(family, before, recipe.prune)
    output.stage("prune", f"scoring channels by {recipe.prune.importance}")
    with output.progress("score channels", timesteps(recipe.prune.importance, loaded.scheduler)) as progress:
        scores = importance_scores(
            recipe.prune.importance,
            loaded.model,
            family,
            x0=None if images is None else images.batch(evenly(len(images), recipe.prune.num_images)),
            scheduler=loaded.scheduler,
            seed=recipe.prune.seed,
            on_timestep=progress.advance,
        )
    student, report = prune_width(loaded.model, family, widths, scores)
    if recipe.prune.ratio is not None:
        check_reached(family, before, student.config, recipe.prune.ratio)
    reached = Reached(
        requested={
            key: value
            for key, value in recipe.prune.model_dump(include={"ratio", "params", "macs"}).items()
            if value is not None
        },
        importance=recipe.prune.importance,
        widths_before=report.widths_before,
        widths_after=report.widths,
        params_after=report.params,
        bytes_after=report.bytes,
        channels_removed=1 - sum(report.widths.values()) / sum(report.widths_before.values()),
        params_removed=1 - report.params / report.params_before,
        macs_removed=1 - model_cost(family, student.config).macs / model_cost(family, before).macs,
    )
    with atomic_folder(run.pruned) as temporary:
        model_folder.save(temporary, student, loaded.scheduler)
        write_manifest(
            temporary,
            stage="prune",
            config=config,
            inputs=inputs,
            reached=reached.model_dump(mode="json"),
            kept_channels=report.to_dict()["groups"],
        )
    output.stage("prune", _sentence(reached))
    return reached


def _sentence(reached: Reached) -> str:
    asked = ", ".join(f"{name} {value:g}" for name, value in reached.requested.items())
    widths = ", ".join(str(width) for width in reached.widths_after.values())
    return (
        f"asked {asked}; reached widths ({widths}): {reached.channels_removed:.1%} of the channels removed, "
        f"{reached.params_removed:.1%} of the parameters, {reached.macs_removed:.1%} of the MACs; "
        f"{reached.params_after:,} parameters stay, {reached.bytes_after / 1e6:.2f} MB"
    )
