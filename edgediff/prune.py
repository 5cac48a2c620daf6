"""The verb `prune`: a teacher → a student of fewer blocks, fewer channels or both, a stock pipeline of what is kept."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgediff import model_folder, roles, samples, teacher
from edgediff.artifacts import atomic_folder, cpu_name, read_json, sha256, up_to_date, write_manifest
from edgediff.backends import best_device
from edgediff.budgets.agreement import agreed
from edgediff.budgets.choice import Choice, choose
from edgediff.budgets.measure import beside
from edgediff.budgets.space import Student
from edgediff.budgets.table import LatencyTable, read_table
from edgediff.data.images import Images
from edgediff.data.order import evenly
from edgediff.families import DepthCut
from edgediff.metrics.cost import model_cost, parameter_bytes, parameter_count
from edgediff.model_folder import Loaded
from edgediff.output import Output, number
from edgediff.pruning import (
    BLOCK_MEASURES,
    IMPORTANCES,
    DepthReport,
    Scores,
    WidthReport,
    block_importance,
    check_reached,
    choose_blocks,
    importance_scores,
    learn_depth,
    measurements,
    prune_depth,
    prune_width,
    published_cut,
    refine,
    removal_count,
    timesteps,
    widths_for_ratio,
    widths_in_order,
)
from edgediff.recipe import PLACES, DepthConfig, PruneConfig, Recipe
from edgediff.results import Reached, Search
from edgediff.run import Run


def prune(run: Run, recipe: Recipe, output: Output) -> Reached:
    """Write `run.pruned`, with what was asked and what was reached in its manifest.

    Blocks go first; which channels matter is then asked of the model without them.

    Raises: BadInputError for a target out of reach; StageFailedError naming the level when less was removed than asked.
    """
    settings = recipe.prune
    source = teacher.resolve(recipe.teacher).folder
    config = pruning_config(recipe)
    loaded = model_folder.load(source)
    encoded = roles.encoded(run, recipe)
    images = samples.learned(recipe.data, "train", loaded, encoded, output) if "data" in config else None
    inputs = {"teacher": loaded.sha256, **({"images": images.sha256} if images else {})}
    table = None
    if settings.needs_profile:
        measured = Path(settings.device) if settings.device else run.profile
        table = read_table(measured, loaded.model.config)
        inputs["profile"] = sha256(measured)
    if up_to_date(run.pruned, stage="prune", config=config, inputs=inputs, aside=PLACES):
        reached = Reached.model_validate(read_json(run.pruned / "manifest.json")["reached"])
        output.stage("prune", f"up to date: {_sentence(reached)}")
        return reached

    student: Any = loaded.model.to(best_device())
    depth = width = search = None
    record: dict[str, Any] = {}
    if settings.depth is not None:
        cut, importance = _choose_blocks(settings.depth, settings.seed, loaded, images, output)
        student, depth = prune_depth(student, loaded.family, cut)
        record |= {"kept_blocks": depth.kept, "block_importance": importance}
    if settings.budgets:
        student, width, cut_blocks, search = _within_budgets(student, settings, loaded, images, table, output)
        depth = depth or cut_blocks
        record |= {"kept_channels": width.to_dict()["groups"], "search": search.model_dump(mode="json")}
        if cut_blocks is not None:
            record["kept_blocks"] = cut_blocks.kept
    elif settings.narrows:
        student, width = _narrow(student, settings, loaded, images, output)
        record["kept_channels"] = width.to_dict()["groups"]
    if settings.refine != "none":
        refine(student, settings.refine)
    reached = _reached(settings, loaded, student, depth, width, search)
    with atomic_folder(run.pruned) as temporary:
        model_folder.save(temporary, student, loaded.scheduler, source)
        write_manifest(
            temporary,
            stage="prune",
            config=config,
            inputs=inputs,
            reached=reached.model_dump(mode="json"),
            **record,
        )
    output.stage("prune", _sentence(reached))
    return reached


def pruning_config(recipe: Recipe) -> dict[str, Any]:
    """Return what of a recipe decides how the pruned model comes out."""
    config = {"prune": recipe.prune.model_dump(mode="json")}
    return {**config, "data": recipe.data.model_dump(mode="json")} if _looks_at_images(recipe.prune) else config


def _looks_at_images(settings: PruneConfig) -> bool:
    depth = settings.depth
    of_blocks = (
        depth is not None
        and depth.rule is None
        and (depth.by == "tinyfusion" or BLOCK_MEASURES[depth.by].looks_at == "images")
    )
    return of_blocks or (settings.narrows and IMPORTANCES[settings.importance].needs_data)


def _calibration(images: Images | None, count: int) -> dict[str, Any]:
    """Return images spread over the set and what belongs to them, as arguments of whoever looks at them."""
    if images is None:
        return {"x0": None}
    indices = evenly(len(images), count)
    return {"x0": images.batch(indices), "conditioning": images.conditioning(indices)}


def _choose_blocks(
    depth: DepthConfig, seed: int, loaded: Loaded, images: Images | None, output: Output
) -> tuple[DepthCut, dict[str, float]]:
    """Return the cut that a recipe asks for, and the importance of every block where one was measured."""
    family, model, before = loaded.family, loaded.model, loaded.model.config
    if depth.rule is not None:
        return published_cut(family, before, depth.rule), {}
    blocks, count = len(family.blocks(before)), removal_count(family, before, depth)
    if depth.by == "tinyfusion":
        learning = depth.tinyfusion
        output.stage("prune", f"learning which {blocks - count} of {blocks} blocks stay")
        with output.progress("learn depth", learning.steps) as progress:
            learned = learn_depth(
                model,
                family,
                blocks - count,
                learning,
                **_calibration(images, learning.num_images),
                scheduler=loaded.scheduler,
                seed=seed,
                on_step=lambda loss: progress.advance(note=f"loss {loss:.4g}"),
            )
        return family.without_blocks(before, learned.removed), learned.stay
    output.stage("prune", f"measuring {blocks} blocks by {depth.by}")
    with output.progress("measure blocks", measurements(depth.by, blocks)) as progress:
        importance = block_importance(
            depth.by,
            model,
            family,
            **_calibration(images, depth.num_images),
            scheduler=loaded.scheduler,
            count=count,
            seed=seed,
            on_step=progress.advance,
        )
    return family.without_blocks(before, choose_blocks(family, before, depth, importance)), importance


def _narrow(
    model: Any, settings: PruneConfig, loaded: Loaded, images: Images | None, output: Output
) -> tuple[Any, WidthReport]:
    """Return the model with the recipe's share of channels removed, or of the widths that it gives."""
    family, config, ratio = loaded.family, model.config, settings.ratio
    if settings.widths is not None:
        widths = widths_in_order(family, config, settings.widths)
    else:
        assert ratio is not None
        widths = widths_for_ratio(family, config, ratio)
    student, report = prune_width(model, family, widths, _scores(model, settings, loaded, images, output))
    if ratio is not None:
        check_reached(family, config, student.config, ratio)
    return student, report


def _within_budgets(
    model: Any,
    settings: PruneConfig,
    loaded: Loaded,
    images: Images | None,
    table: LatencyTable | None,
    output: Output,
) -> tuple[Any, WidthReport, DepthReport | None, Search]:
    """Return the student that keeps most within the budgets, and how it was found; blocks go before channels."""
    family, depth = loaded.family, None
    scores = _scores(model, settings, loaded, images, output)
    output.stage("prune", f"looking for the student within {_worded(settings)}, among {settings.search}")

    def find(measured: Mapping[Student, float]) -> Choice:
        return choose(family, model.config, settings, table, scores, output, measured)

    if table is not None and settings.latency_ms is not None and table.device == cpu_name():
        with beside(family, loaded.model.config, table.threads) as share:
            choice = agreed(find, lambda found: share(found.student_config) * table.teacher_ms, output)
    else:
        choice = find({})
    if choice.removed:
        model, depth = prune_depth(model, family, family.without_blocks(model.config, choice.removed))
        scores = _scores(model, settings, loaded, images, output)
    student, report = prune_width(model, family, choice.widths, scores)
    return student, report, depth, choice.record


def _scores(model: Any, settings: PruneConfig, loaded: Loaded, images: Images | None, output: Output) -> Scores:
    name = settings.importance
    output.stage("prune", f"scoring channels by {name}")
    with output.progress("score channels", timesteps(name, loaded.scheduler)) as progress:
        return importance_scores(
            name,
            model,
            loaded.family,
            **_calibration(images, settings.num_images),
            scheduler=loaded.scheduler,
            seed=settings.seed,
            on_timestep=progress.advance,
        )


def _reached(
    settings: PruneConfig,
    loaded: Loaded,
    student: Any,
    depth: DepthReport | None,
    width: WidthReport | None,
    search: Search | None,
) -> Reached:
    """Return what was asked and what was done, over both cuts."""
    family, model = loaded.family, loaded.model
    asked_of_blocks: dict[str, Any] = {}
    if settings.depth is not None:
        asked_of_blocks = settings.depth.model_dump(include={"remove", "keep", "params", "macs", "rule"})
    asked_of_channels: dict[str, Any] = {"ratio": settings.ratio, **settings.budgets}
    if settings.widths is not None:
        asked_of_channels["widths"] = ", ".join(map(str, settings.widths))
    asked = {**{f"depth.{name}": value for name, value in asked_of_blocks.items()}, **asked_of_channels}
    before, after = family.levels(model.config), family.levels(student.config)
    return Reached(
        requested={name: value for name, value in asked.items() if value is not None},
        importance=settings.importance if width else "",
        widths_before=before,
        widths_after=after,
        blocks_before=len(depth.kept) + len(depth.removed) if depth else None,
        blocks_after=len(depth.kept) if depth else None,
        blocks_removed=list(depth.removed) if depth else [],
        blocks_by=settings.depth.rule or settings.depth.by if settings.depth else "search" if depth else "",
        refine=settings.refine,
        params_after=parameter_count(student),
        bytes_after=parameter_bytes(student),
        channels_removed=1 - sum(after.values()) / sum(before.values()),
        params_removed=1 - parameter_count(student) / parameter_count(model),
        macs_removed=1 - model_cost(family, student.config).macs / model_cost(family, model.config).macs,
        search=search,
    )


def _worded(settings: PruneConfig) -> str:
    return ", ".join(f"{name} {value:,g}" for name, value in settings.budgets.items())


def _sentence(reached: Reached) -> str:
    blocks = ""
    if reached.blocks_before is not None:
        blocks = f"{reached.blocks_after} of {reached.blocks_before} blocks, "
    widths = ", ".join(str(width) for width in reached.widths_after.values())
    return (
        f"asked {reached.asked}; reached {blocks}widths ({widths}): {reached.channels_removed:.1%} of the channels "
        f"removed, {reached.params_removed:.1%} of the parameters, {reached.macs_removed:.1%} of the MACs; "
        f"{reached.params_after:,} parameters stay, {reached.bytes_after / 1e6:.2f} MB" + _predicted(reached)
    )


def _predicted(reached: Reached) -> str:
    if reached.search is None or not reached.search.device:
        return ""
    of_student, of_teacher = reached.search.found.costs, reached.search.teacher
    return (
        f"; predicted on {reached.search.device}: {number(of_student['latency_ms'], ' ms')} a step "
        f"(teacher {number(of_teacher['latency_ms'], ' ms')}), {number(of_student['memory_mb'], ' MB')}"
    )
