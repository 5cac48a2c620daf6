"""The verb `distill`: teacher and pruned student → student, with LIFT/PLACE or its rivals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from edgediff import model_folder, roles, samples
from edgediff.artifacts import atomic_folder, claims, content_hash, read_json, up_to_date, write_manifest
from edgediff.diffusion import schedule
from edgediff.distillation.cache import TargetCache, check_source
from edgediff.distillation.identity import WATCHING, converted, of_student, of_targets, of_training
from edgediff.distillation.objective import Distillation
from edgediff.distillation.targets import LiveTeacher, TaughtBatches, feature_points, x0_threshold
from edgediff.distillation.together import check_together, common
from edgediff.model_folder import Loaded
from edgediff.output import Output, number
from edgediff.recipe import DistillConfig, Recipe, loss_words, objective_words
from edgediff.results import TrainingSummary
from edgediff.run import Run
from edgediff.samples import Samples
from edgediff.training import checkpoint, log, processes
from edgediff.training.announcement import announce
from edgediff.training.batches import Noising
from edgediff.training.loop import train
from edgediff.training.memory import naming_full_memory
from edgediff.training.precision import check_precision
from edgediff.training.tracking import check_trackers


def distill(run: Run, recipe: Recipe, output: Output, *, resume: bool = False) -> TrainingSummary:
    """Write `run.student` with averaged weights, and the curve to `run.train_log`.

    Every process of a group (`accelerate launch -m edgediff distill`) calls it; the main one writes.

    Args: resume: continue from `run.checkpoints` where an earlier run was stopped or killed.
    Raises: BadInputError when there is nothing pruned yet, a training that is there and no `resume`, teachers that
    do not fit the student or each other, a precision that this device does not train in, or a target cache of another
    teacher; MissingExtraError for a tracker; StageFailedError at a loss or a teacher's answer that is not finite, and
    for models or a step that memory does not hold; InterruptedStageError on SIGINT.
    """
    settings, device = recipe.distill.training, processes.device()
    source = roles.folder(run, recipe, "pruned")
    teachers = [model_folder.load(folder) for folder in roles.teaching(run, recipe)]
    small = starting_student(model_folder.load(source), recipe.distill)
    torch.manual_seed(settings.seed)  # of the adapters
    objective = Distillation(small, teachers, recipe.distill)
    cache_folder = Path(recipe.distill.cache.folder or run.targets)
    config = of_student(recipe)
    models = {"teacher": "+".join(of.sha256 for of in teachers), "pruned": content_hash(source)}
    if not claims(run.student, stage="distill", config=config, known=models, aside=WATCHING):
        _check_ahead(recipe, small, teachers, cache_folder)
    with processes.main_first():  # who indexes and hashes what the others then find
        images = samples.learned(recipe.data, "train", small, roles.encoded(run, recipe), output)
    inputs = {**models, "images": images.sha256}
    if up_to_date(run.student, stage="distill", config=config, inputs=inputs, aside=WATCHING):
        summary = TrainingSummary.model_validate(read_json(run.student / "manifest.json")["training"])
        output.stage("distill", f"up to date: {summary.steps} steps with kd {summary.kd}")
        return summary

    announce("distill", objective_words(recipe.distill), settings, run.checkpoints, output, resume=resume)
    with naming_full_memory("the student and its teachers", "free memory of the device, or use a larger one"):
        objective.to(device)
        for teacher in teachers if recipe.distill.kd else ():
            # Without gradients, else autocast holds a second copy of their weights, in half precision.
            teacher.model.requires_grad_(False).to(device)
    batches = taught_batches(small, teachers, images, recipe, cache_folder, output.say)
    cache = batches.teaching if isinstance(batches.teaching, TargetCache) else None
    done = checkpoint.finished_steps(run.checkpoints) if resume else 0
    with output.progress("distill", settings.steps, done) as progress:
        result = train(
            objective,
            batches,
            settings,
            checkpoints=run.checkpoints,
            log=run.train_log,
            identity=of_training(recipe, inputs),
            resume=resume,
            on_step=lambda record: progress.advance(note=_note(record.values)),
            counts=cache.counts if cache else dict,
        )
    report = cache.report(result.counts) if cache else None
    summary = TrainingSummary(
        kd=loss_words(recipe.distill.kd),
        steps=result.steps,
        batch_size=result.global_batch,
        steps_per_second=result.steps_per_second,
        final=log.last_mean(log.read(run.train_log)),
        cache=report,
    )
    if processes.is_main():
        with atomic_folder(run.student) as temporary:
            model_folder.save(temporary, small.model, small.scheduler, source)
            write_manifest(
                temporary,
                stage="distill",
                config=config,
                inputs=inputs,
                training=summary.model_dump(mode="json"),
                resumed_at=result.resumed_at,
                settings=result.settings,
            )
        if cache and report:
            cache.remember_cost(report)  # last: should it fail, the student is there
    processes.wait_for_everyone()
    output.stage("distill", f"{summary.steps} steps, {summary.steps_per_second:.2f} a second")
    if report is not None:
        output.stage(
            "",
            f"target cache: {report['read']:,.0f} read, {report['computed']:,.0f} computed, "
            f"{number(report['teacher_seconds_saved'], ' s')} of the teacher saved",
        )
    return summary


def _check_ahead(recipe: Recipe, student: Loaded, teachers: Sequence[Loaded], cache_folder: Path) -> None:
    """Raise what `distill` does where it can be known before images are encoded, which may take hours."""
    settings = recipe.distill.training
    check_precision(settings.precision, processes.device())
    check_trackers(settings.trackers)
    check_together(*(common(of.family, of.model.config, of.scheduler, of.folder) for of in (student, *teachers)))
    if recipe.distill.remembered_targets:
        models = [(of.family, of.model.config) for of in (student, *teachers)]
        _, *points = feature_points(recipe.distill, models)
        check_source(cache_folder, of_targets(recipe, teachers, student), points)


def starting_student(pruned: Loaded, config: DistillConfig) -> Loaded:
    """Return the student before its first step: its weights, and the prediction type its scheduler says."""
    model, scheduler = pruned.model, pruned.scheduler
    if config.initial == "fresh":
        torch.manual_seed(config.training.seed)
        model = pruned.family.build(model.config)
    schedule.check_student_prediction(scheduler, config.student_prediction, config.kd_space)
    if config.student_prediction is not None:
        scheduler = type(scheduler).from_config(scheduler.config, prediction_type=config.student_prediction)
    return replace(pruned, model=model, scheduler=scheduler)


def taught_batches(
    student: Loaded,
    teachers: Sequence[Loaded],
    images: Samples,
    recipe: Recipe,
    cache_folder: Path,
    tell: Callable[[str], None],
) -> TaughtBatches:
    """Return the batches of a distillation, with the teachers behind them live or cached, or without a teacher.

    Raises: BadInputError for a cache of other targets.
    """
    config = recipe.distill
    device = next(student.model.parameters()).device
    seed = config.cache.seed if config.remembered_targets else config.training.seed
    noising = Noising(images, teachers[0].scheduler, recipe.data, seed=seed, device=device)
    if not config.kd:
        return TaughtBatches(noising, None)
    _, *points = feature_points(config, [(of.family, of.model.config) for of in (student, *teachers)])
    schedulers = [of.scheduler for of in teachers]
    exact = converted(config, schedulers, schedule.prediction_type(student.scheduler))
    live = LiveTeacher(teachers, points, x0_threshold(teachers[0], config), full_precision=exact)
    if not config.remembered_targets:
        return TaughtBatches(noising, live)
    identity = {**of_targets(recipe, teachers, student), "images": images.sha256}
    if len(set(map(schedule.prediction_type, schedulers))) > 1:
        identity["x0 threshold"] = live.threshold
    cache = TargetCache(
        live, cache_folder, targets=config.cache.targets, seed=config.training.seed, identity=identity, tell=tell
    )
    return TaughtBatches(noising, cache)


def _note(values: dict[str, float]) -> str:
    """Word the quantities of a step for the progress line."""
    shown = ("loss", "coarse", "fine", "slope", "intercept", "fine_weight")
    return "  ".join(f"{name} {values[name]:.3g}" for name in shown if name in values)
