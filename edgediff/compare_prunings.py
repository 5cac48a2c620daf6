"""The verb `prune --compare`: every way of pruning at one size, ranked before any distillation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from edgediff import data, model_folder, roles, samples, teacher
from edgediff.artifacts import read_result, result_up_to_date, write_result
from edgediff.backends import best_device
from edgediff.backends.pytorch import PyTorchDenoiser
from edgediff.data.order import evenly
from edgediff.errors import BadInputError
from edgediff.metrics.cost import model_cost
from edgediff.metrics.features import EfficientNetLite0, FeatureExtractor, efficientnet_lite0
from edgediff.model_folder import Loaded
from edgediff.output import Output, number
from edgediff.plan import Outline, outline
from edgediff.prune import prune
from edgediff.pruning import BLOCK_MEASURES, IMPORTANCES
from edgediff.pruning.blocks import foreseen_cut
from edgediff.pruning.importance import denoising_loss
from edgediff.quality import RealImages, draw, floor_row, model_row, profile, real_images, scored_with
from edgediff.recipe import SPEED_ONLY, WIDTH_TARGETS, DepthConfig, PruneConfig, Recipe
from edgediff.results import PruningComparison, PruningRow
from edgediff.run import Run
from edgediff.samples import Samples

LOSS_IMAGES, LOSS_TIMESTEPS = 64, 20
COUNTED_ONLY = ("evenly", "tinyfusion")  # they choose a number of blocks, not blocks for a budget


def compare_prunings(run: Run, recipe: Recipe, output: Output) -> PruningComparison:
    """Write `run.comparison`: the teacher, and what each way of pruning makes of it, the lowest loss first.

    The size is the recipe's `params` or `macs`; of a ratio, the parameters that it leaves. Width meets it within one
    step of its uniform widths, depth within one block, both from below, so every row has its own size beside it. A
    row's student stays in `prunings/`, and what is up to date is not made again.

    Raises: BadInputError for a size that no student can have.
    """
    what = outline(recipe, run.profile)
    target = _target(what, recipe.prune)
    loaded = model_folder.load(teacher.resolve(recipe.teacher).folder)
    encoded = roles.encoded(run, recipe)
    reference = samples.scored(recipe.data, "test", loaded, encoded, output)
    training = data.load(recipe.data, "train", shape=reference.shape, output=output)
    held_out = samples.learned(recipe.data, "test", loaded, encoded, output)
    students, refused = _students(run, recipe, what, target, output)
    inputs = {"teacher": loaded.sha256, "reference": reference.sha256, "extractor": EfficientNetLite0.sha256}
    inputs |= {name: model_folder.fingerprint(folder) for name, folder in students.items()}
    config = {**scored_with(recipe.evaluate, loaded.scheduler), "target": target}
    if result_up_to_date(run.comparison, stage="compare", config=config, inputs=inputs, aside=SPEED_ONLY):
        comparison = PruningComparison.model_validate(read_result(run.comparison))
        output.stage("compare", "up to date")
        show(comparison, output)
        return comparison

    extractor = efficientnet_lite0()
    real = real_images(reference, training, extractor, recipe.evaluate.num_images, output)
    rows = [_row("teacher", loaded, recipe, held_out, reference, real, extractor, output)]
    for name, folder in students.items():
        student = model_folder.load(folder)
        rows.append(_row(name, student, recipe, held_out, reference, real, extractor, output))
    comparison = PruningComparison(
        teacher=recipe.teacher,
        target=target,
        profile=profile(real, extractor, recipe.evaluate, loaded, recipe.data),
        floor=floor_row(real).frechet_distance,
        loss_images=min(LOSS_IMAGES, len(held_out)),
        loss_timesteps=LOSS_TIMESTEPS,
        rows=[rows[0], *sorted(rows[1:], key=lambda row: row.loss)],
        not_run=refused,
    )
    write_result(run.comparison, comparison.model_dump(mode="json"), stage="compare", config=config, inputs=inputs)
    show(comparison, output)
    return comparison


def ways(what: Outline, target: Mapping[str, int], settings: PruneConfig) -> Iterator[tuple[str, PruneConfig | None]]:
    """Yield every way of pruning to a size, by name: width by each importance, depth by each measure.

    None stands for a way that cannot reach the size.

    Args: target: `params` or `macs`. settings: whose seeds and calibration are kept.
    """
    nothing = dict.fromkeys((*WIDTH_TARGETS, "device", "depth"))
    plain = settings.model_copy(update={**nothing, "refine": "none", "search": "uniform"})
    for importance in IMPORTANCES:
        yield f"width, {importance}", plain.model_copy(update={**target, "importance": importance})
    yield "width, magnitude, svs", plain.model_copy(update={**target, "importance": "magnitude", "refine": "svs"})
    yield (
        "width, magnitude, searched",
        plain.model_copy(update={**target, "importance": "magnitude", "search": "widths"}),
    )
    try:
        blocks = what.family.blocks(what.teacher_config)
    except BadInputError:  # a family without depth
        return
    shared = settings.depth.model_dump(include={"num_images", "tinyfusion"}) if settings.depth else {}
    for by in (*BLOCK_MEASURES, "tinyfusion"):
        size = _keep(what, target, len(blocks)) if by in COUNTED_ONLY else target
        if size is None:
            yield f"depth, {by}", None
            continue
        depth = DepthConfig.model_validate({**shared, **size, "by": by})
        yield f"depth, {by}", plain.model_copy(update={"depth": depth})


def show(comparison: PruningComparison, output: Output) -> None:
    """Show the ranking for people."""
    ((unit, size),) = comparison.target.items()
    output.table(
        f"pruned to {size:,} {unit} and not trained: {comparison.profile.num_images} images a row",
        ["", "parameters", "MACs", "loss ↓", "FD ↓", "KID ↓"],
        [
            [
                row.name,
                f"{row.cost.params:,}",
                f"{row.cost.macs / 1e6:,.1f}M",
                f"{row.loss:.4f}",
                number(row.frechet_distance),
                f"{row.kid_mean:.3f}",
            ]
            for row in comparison.rows
        ],
    )
    output.say(
        f"loss: of the noise prediction on {comparison.loss_images} held-out images at {comparison.loss_timesteps} "
        f"timesteps; FD of {comparison.profile.floor_kind} (floor): {comparison.floor:.0f}"
    )
    for name, reason in comparison.not_run.items():
        output.say(f"not run: {name}: {reason}")


def _target(what: Outline, settings: PruneConfig) -> dict[str, int]:
    if settings.depth is None and settings.macs is not None:
        return {"macs": settings.macs}
    if settings.depth is None and settings.params is not None:
        return {"params": settings.params}
    return {"params": model_cost(what.family, what.student_config).params}


def _keep(what: Outline, target: Mapping[str, int], total: int) -> Mapping[str, int] | None:
    """Return how many blocks may stay within the size, when they go evenly; None when none may."""
    ((unit, size),) = target.items()
    for keep in range(total, -1, -1):
        cut = foreseen_cut(what.family, what.teacher_config, DepthConfig(keep=keep, by="evenly"), seed=0)
        if getattr(model_cost(what.family, cut.config), unit) <= size:
            return {"keep": keep}
    return None


def _students(
    run: Run, recipe: Recipe, what: Outline, target: Mapping[str, int], output: Output
) -> tuple[dict[str, Path], dict[str, str]]:
    """Prune in every way; return the folder of each student, and why some ways are closed to this teacher."""
    made: dict[str, Path] = {}
    refused: dict[str, str] = {}
    for name, settings in ways(what, target, recipe.prune):
        if settings is None:
            refused[name] = "the size cannot be reached by blocks alone"
            continue
        output.stage("compare", name)
        of_way = Run(run.pruning(name))
        shared = recipe.data.model_copy(update={"encoded": str(roles.encoded(run, recipe))})
        try:
            prune(of_way, recipe.model_copy(update={"prune": settings, "data": shared}), output)
        except BadInputError as error:
            refused[name] = "; ".join(filter(None, (error.message, error.hint)))
        else:
            made[name] = of_way.pruned
    return made, refused


def _row(
    name: str,
    loaded: Loaded,
    recipe: Recipe,
    held_out: Samples,
    reference: Samples,
    real: RealImages,
    extractor: FeatureExtractor,
    output: Output,
) -> PruningRow:
    denoiser = PyTorchDenoiser(loaded.model, loaded.family, best_device())
    drawn = draw(denoiser, loaded, recipe.evaluate, output, name, reference)
    scored = model_row("pruned", drawn, real, extractor)
    return PruningRow(
        name=name,
        cost=model_cost(loaded.family, loaded.model.config),
        loss=_loss(loaded, held_out),
        frechet_distance=scored.frechet_distance,
        kid_mean=scored.kid_mean,
        noise_share=scored.noise_share,
    )


@torch.inference_mode()
def _loss(loaded: Loaded, held_out: Samples) -> float:
    """Return the diffusion loss on held-out samples, the mean over timesteps spread over the schedule."""
    indices = evenly(len(held_out), min(LOSS_IMAGES, len(held_out)))
    loss_at = denoising_loss(
        loaded.family, held_out.batch(indices), loaded.scheduler, conditioning=held_out.conditioning(indices)
    )
    last = loaded.scheduler.config["num_train_timesteps"] - 1
    timesteps = torch.linspace(0, last, LOSS_TIMESTEPS).long().tolist()
    return sum(float(loss_at(loaded.model, timestep)) for timestep in timesteps) / len(timesteps)
