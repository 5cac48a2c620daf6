"""The verb `plan`: what a recipe will do, how long and with how much memory, found out in seconds without a write."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import nn

from edgediff import data, diagnostics, families, model_folder, roles, teacher
from edgediff.artifacts import read_json
from edgediff.budgets.choice import choose
from edgediff.budgets.table import LatencyTable, read_table
from edgediff.data import Source
from edgediff.data.order import evenly
from edgediff.data.splits import Split
from edgediff.diffusion import guidance
from edgediff.diffusion.schedule import check_student_prediction
from edgediff.distillation.cache import HALF_BYTES, disk_bytes
from edgediff.distillation.targets import feature_points, uses_features
from edgediff.distillation.together import check_together, common
from edgediff.encoding import latents
from edgediff.encoding.work import latent_macs, text_macs
from edgediff.errors import BadInputError
from edgediff.families import Config, Family, Widths
from edgediff.metrics.cost import model_cost, parameter_bytes
from edgediff.output import QUIET
from edgediff.pruning import check_learnable, foreseen_cut, forwards, widths_for_ratio, widths_in_order
from edgediff.recipe import DataConfig, DistillConfig, EvaluateConfig, PruneConfig, Recipe, objective_words
from edgediff.results import Plan, Search, StagePlan
from edgediff.run import ROLES
from edgediff.samples import CLASSES, random_captions

TRIAL_BATCH = 4
BACKWARD = 2.0  # a backward pass costs about two forwards
TRAINING_COPIES = 5  # of the student's parameters: weights, gradient, two moments, average
INTERPRETER_MIB = 600  # Python with torch, diffusers and ONNX Runtime loaded
# Seconds that do not depend on the model's arithmetic, from runs on one AVX-512 core.
EXPORT_SECONDS_A_MODULE = 0.12
ENGINE_SECONDS = 10.0
FEATURE_SECONDS = 0.003
REFERENCE_IMAGES = 10_000
PROCESS_SECONDS = 6.0
CAPTIONS_READ = 1000
SPLITS: tuple[Split, ...] = ("train", "test")

Model = tuple[Family, Config]


@dataclass(frozen=True)
class Outline:
    """Teacher and student as configs: what can be known without weights."""

    family: Family
    teacher_config: Config
    student_config: Config
    widths: Widths
    search: Search | None = None


def outline(recipe: Recipe, measured: Path | None = None) -> Outline:
    """Check the teacher's folder and find the student's depth and widths; which blocks go may be known only later.

    A registered teacher that is not on this machine is known by its entry, so nothing is fetched. A student within
    budgets is looked for as if all channels of a layer mattered the same.

    Args: measured: where this machine's profile is, for budgets that need one and a recipe that names none.
    Raises: BadInputError for an unknown teacher, a target that no student of it can meet, or a profile that is missing
    or another teacher's; CorruptArtifactError for damaged weights.
    """
    family, config = _described(recipe.teacher)
    shallow: Config = config
    if recipe.prune.depth is not None:
        if recipe.prune.depth.by == "tinyfusion":
            check_learnable(family.blocks(config))
        shallow = foreseen_cut(family, config, recipe.prune.depth, recipe.prune.seed).config
    if not recipe.prune.narrows:
        return Outline(family, config, shallow, family.levels(shallow))
    if recipe.prune.ratio is not None:
        widths = widths_for_ratio(family, shallow, recipe.prune.ratio)
        return Outline(family, config, family.student_config(shallow, widths), widths)
    if recipe.prune.widths is not None:
        widths = widths_in_order(family, shallow, recipe.prune.widths)
        return Outline(family, config, family.student_config(shallow, widths), widths)
    choice = choose(family, shallow, recipe.prune, _table(recipe, config, measured), None)
    return Outline(family, config, choice.student_config, choice.widths, choice.record)


def outlines(recipe: Recipe, measured: Path | None = None) -> list[Outline]:
    """Return the outlines of a recipe's teacher assistants, in the order in which they are made, then its student's.

    Args: measured: as of `outline`.
    Raises: what `outline` and `check_taught` raise; BadInputError for an assistant no larger than the student.
    """
    found = [outline(planned, measured) for planned in (*roles.assistant_recipes(recipe), recipe)]
    if recipe.distill.assistants:
        last, student = (model_cost(what.family, what.student_config).params for what in found[-2:])
        if last <= student:
            raise BadInputError(
                f"distill.assistants: one of ratio {recipe.distill.assistants[-1].ratio:g} has {last:,} parameters, no "
                f"more than the student's {student:,}",
                "give the last assistant a smaller ratio",
            )
    check_taught(recipe, found)
    return found


def check_taught(recipe: Recipe, students: Sequence[Outline]) -> None:
    """Find out whether the recipe's student can predict what is asked for, and be compared with its teachers.

    Raises: BadInputError for an unknown teacher, or one of other samples or another noise schedule; for a prediction
    type that the schedule does not have; for conditions to be exchanged or dropped that there are none of; and for
    feature losses that cannot compare the student, or assistants before it, with their teachers (`feature_points`).
    """
    names = (recipe.teacher, *recipe.distill.teachers)
    own, *others = described = [_described(name) for name in names]
    folders = [None if teacher.registered(name) else teacher.resolve(name).folder for name in names]
    schedules = [model_folder.noise_schedule(folder) if folder else None for folder in folders]
    seen = zip(described, schedules, folders, strict=True)
    check_together(*(common(*model, scheduler, folder) for model, scheduler, folder in seen))
    if schedules[0] is not None:
        check_student_prediction(schedules[0], recipe.distill.student_prediction, recipe.distill.kd_space)
    _check_told(recipe.data, *own)
    if not uses_features(recipe.distill):
        return
    first = others or [own]
    made = [(student.family, student.student_config) for student in students]
    for place, student in enumerate(made):
        feature_points(recipe.distill, [student, *roles.taught_by(recipe.distill, first, made[:place])])


def _check_told(config: DataConfig, family: Family, of_teacher: Config) -> None:
    """Raise BadInputError for conditions to be exchanged or dropped where none are, or nothing says so."""
    told = family.conditioning_names(of_teacher)
    for name in ("random_conditioning", "conditioning_dropout"):
        if getattr(config, name) and not told:
            raise BadInputError(f"data.{name}: the teacher is told nothing", "leave it out")
    if config.conditioning_dropout and told == CLASSES:
        try:
            family.unconditional(of_teacher, 1)
        except BadInputError as error:
            raise BadInputError(
                "data.conditioning_dropout: the teacher knows no label that stands for no class", "leave it out"
            ) from error


def _described(name: str) -> Model:
    """Return the family of a teacher, and its config with every default written out."""
    absent = teacher.registered(name)
    if absent is not None:
        class_name, stored = absent.class_name, absent.config
    else:
        folder = teacher.resolve(name).folder
        model_folder.check(folder)
        stored = read_json(model_folder.component(folder) / "config.json")
        class_name = stored["_class_name"]
    family = families.of(class_name)
    return family, dict(family.build(stored, "meta").config)


def _table(recipe: Recipe, config: Config, measured: Path | None) -> LatencyTable | None:
    if not recipe.prune.needs_profile:
        return None
    if recipe.prune.device is not None:
        return read_table(Path(recipe.prune.device), config)
    if measured is None or not measured.is_file():
        raise BadInputError(
            "a plan within latency_ms or memory_mb needs a profile of the device, and there is none yet",
            f"run `edgediff profile --teacher {recipe.teacher} --out profile.json`, then add `--device profile.json`",
        )
    return read_table(measured, config)


def plan(recipe: Recipe, measured: Path | None = None) -> Plan:
    """Return the stages of a recipe with estimated seconds, and the memory the run needs at its peak.

    One forward of teacher and student is timed here, at a small batch; everything else is counted from it.
    """
    *_, what = students = outlines(recipe, measured)
    models = {
        "teacher": what.family.build(what.teacher_config).eval(),
        "student": what.family.build(what.student_config).eval(),
    }
    seconds = {name: _forward_seconds(model, what.family) for name, model in models.items()}
    cost = model_cost(what.family, what.teacher_config)
    modules = sum(1 for module in models["teacher"].modules() if not list(module.children()))
    rounds = recipe.benchmark.iterations + recipe.benchmark.warmup_iterations
    all_roles = seconds["teacher"] + 2 * seconds["student"]
    sizes = recipe.benchmark.batch_sizes
    stages = [
        *_encode_plans(recipe, what, seconds["teacher"] / cost.macs),
        _prune_plan(recipe.prune, what, seconds["teacher"]),
        *_distill_plans(recipe, students, seconds["student"], seconds["teacher"] / cost.macs),
        StagePlan(
            stage="export", seconds=3 * modules * EXPORT_SECONDS_A_MODULE, what="ONNX of teacher, pruned, student"
        ),
        StagePlan(
            stage="build",
            seconds=ENGINE_SECONDS * len(recipe.build.backends),
            what=", ".join(recipe.build.backends) or "no engine asked for",
        ),
        StagePlan(
            stage="benchmark",
            seconds=2 * rounds * sum(sizes) * all_roles + 6 * len(sizes) * PROCESS_SECONDS,
            what=f"batch sizes {', '.join(map(str, sizes))}, {recipe.benchmark.iterations} rounds",
        ),
        _evaluate_plan(recipe.evaluate, what, all_roles),
        _diagnose_plan(recipe.evaluate, seconds["teacher"], seconds["student"]),
    ]
    return Plan(
        teacher=recipe.teacher,
        widths_before=what.family.levels(what.teacher_config),
        widths_after=what.widths,
        before=cost,
        after=model_cost(what.family, what.student_config),
        search=what.search,
        stages=stages,
        memory_mib=max(_memory_mib(models, what.family, recipe.distill.training.batch_size), _drawn_mib(recipe, what)),
    )


def _encode_plans(recipe: Recipe, what: Outline, seconds_a_mac: float) -> list[StagePlan]:
    """Return the stage that makes latents of all images and embeddings of all captions, where the model needs either.

    How many captions are different is estimated from some of them.
    """
    if teacher.registered(recipe.teacher) is not None:
        return [StagePlan(stage="encode", seconds=0.0, what="not counted: the teacher is not on this machine")]
    folder, inputs = teacher.resolve(recipe.teacher).folder, what.family.example_inputs(what.teacher_config)
    shape, image_shape = what.family.sample_shape(what.teacher_config), _image_shape(recipe, what)
    macs, size, parts = 0.0, 0.0, []
    of_latents = model_folder.autoencoder(folder) is not None
    splits = [data.load(recipe.data, split, shape=image_shape, output=QUIET) for split in SPLITS]
    if of_latents:
        count = sum(map(len, splits))
        parts.append(f"latents of {count:,} images")
        macs += count * latent_macs(folder, image_shape)
        size += count * 2 * math.prod(shape) * HALF_BYTES  # mean and standard deviation
    if "encoder_hidden_states" in inputs:
        captions = round(sum(map(_different_captions, splits)))
        if recipe.data.random_captions is not None:
            captions += len(set(random_captions(recipe.data.random_captions)))
        parts.append(f"embeddings of about {captions:,} captions")
        macs += captions * text_macs(folder, inputs["encoder_hidden_states"].shape[1])
        size += captions * inputs["encoder_hidden_states"].numel() * HALF_BYTES
    if not parts:
        return []
    words = f"{' and '.join(parts)}, {size / 2**20:,.0f} MiB on disk"
    return [StagePlan(stage="encode", seconds=macs * seconds_a_mac, what=words)]


def _image_shape(recipe: Recipe, what: Outline) -> tuple[int, int, int]:
    """Return (C, H, W) of drawn images; of samples where an autoencoder would decode them that is not here."""
    shape = what.family.sample_shape(what.teacher_config)
    if teacher.registered(recipe.teacher) is not None:
        return shape
    folder = teacher.resolve(recipe.teacher).folder
    return shape if model_folder.autoencoder(folder) is None else latents.image_shape(folder, shape)


def _drawn_mib(recipe: Recipe, what: Outline) -> float:
    """Return what evaluation holds: the drawn images of all roles, a byte a value."""
    return INTERPRETER_MIB + len(ROLES) * recipe.evaluate.num_images * math.prod(_image_shape(recipe, what)) / 2**20


def _different_captions(images: Source) -> float:
    some = images.captions(evenly(len(images), CAPTIONS_READ))
    return len(images) * len(set(some)) / len(some)


def _distill_plans(
    recipe: Recipe, students: Sequence[Outline], forward: float, seconds_a_mac: float
) -> list[StagePlan]:
    """Return the trainings of the teacher assistants and of the student, each with those who teach it.

    Args: students: the assistants, then the student.
          forward: the student's in seconds an image; everyone else's takes as long as its MACs say.
    """
    first = [_described(name) for name in recipe.distill.teachers or (recipe.teacher,)]
    *assistants, student = [(what.family, what.student_config) for what in students]
    found: list[StagePlan] = []
    for place, of_assistant in enumerate(roles.assistant_recipes(recipe)):
        cost = model_cost(*assistants[place])
        chain = [assistants[place], *roles.taught_by(recipe.distill, first, assistants[:place])]
        planned = _distill_plan("assistant", of_assistant, chain, seconds_a_mac * cost.macs, seconds_a_mac)
        size = f"ratio {of_assistant.prune.ratio:g}, {cost.params:,} parameters"
        found.append(planned.model_copy(update={"what": f"{size}: {planned.what}"}))
    chain = [student, *roles.taught_by(recipe.distill, first, assistants)]
    return [*found, _distill_plan("distill", recipe, chain, forward, seconds_a_mac)]


def _distill_plan(
    stage: str, recipe: Recipe, models: Sequence[Model], forward: float, seconds_a_mac: float
) -> StagePlan:
    """Return a training.

    Args: models: who learns, then its teachers.
          forward: of who learns, in seconds an image.
    """
    training = recipe.distill.training
    cached = recipe.distill.remembered_targets
    images = training.steps * training.global_batch()
    answers = 0 if not recipe.distill.kd else min(images, cached) if cached else images
    what = (
        f"{objective_words(recipe.distill)}, {training.steps} steps of {training.global_batch()}, {training.precision}"
    )
    if cached:
        what += f"; {answers:,} teacher targets kept, {_targets_mib(recipe.distill, models, images):,.0f} MiB on disk"
        if images <= cached and recipe.distill.cache.folder is None:  # others may have filled one that is shared
            what += "; none would be read again, so nothing is saved"
    return StagePlan(
        stage=stage,
        seconds=images * (1 + BACKWARD) * forward
        + answers * seconds_a_mac * fmean(model_cost(*teaching).macs for teaching in models[1:]),
        what=what,
    )


def _targets_mib(config: DistillConfig, models: Sequence[Model], images: int) -> float:
    """Return what a training's cached targets take on disk; `models`: who learns, then its teachers."""
    _, (family, described), *_ = models
    _, points, *_ = feature_points(config, models)
    shapes = (family.sample_shape(described), *(family.feature_shapes(described, points) if points else ()))
    return disk_bytes(config.cache.targets, images, shapes) / 2**20


def _evaluate_plan(settings: EvaluateConfig, what: Outline, all_roles: float) -> StagePlan:
    """Return the drawing and scoring of every role; `all_roles` is one forward of each, in seconds an image."""
    guided = bool(what.family.conditioning_names(what.teacher_config))
    images, words = settings.num_images * guidance.forwards(guided, settings.guidance_scale), ""
    further = [scale for scale in settings.guidance_scales if scale != settings.guidance_scale]
    if guided and further:
        count = min(settings.num_class_images, settings.num_images)
        images += count * sum(guidance.forwards(guided, scale) for scale in further)
        words = f"; class accuracy, where classes are known: {count} at guidance {', '.join(f'{s:g}' for s in further)}"
    return StagePlan(
        stage="evaluate",
        seconds=images * settings.num_inference_steps * all_roles
        + (REFERENCE_IMAGES + 4 * settings.num_images) * FEATURE_SECONDS,
        what=f"{settings.num_images} images a model, {settings.num_inference_steps} steps each{words}",
    )


def _diagnose_plan(settings: EvaluateConfig, of_teacher: float, of_student: float) -> StagePlan:
    """Return the comparison on held-out images; forwards are in seconds an image."""
    count = min(diagnostics.IMAGES, settings.num_images)
    all_roles, pair = of_teacher + 2 * of_student, of_teacher + of_student
    shown = diagnostics.MAP_IMAGES + diagnostics.SHOWN_IMAGES
    return StagePlan(
        stage="diagnose",
        seconds=diagnostics.TIMESTEPS * count * all_roles
        + diagnostics.SHOWN_TIMESTEPS * shown * pair
        + diagnostics.SHARPNESS_IMAGES * (of_teacher + 2 * (2 + BACKWARD) * of_student),
        what=f"{count} held-out images at {diagnostics.TIMESTEPS} timesteps; sharpness",
    )


def _prune_plan(settings: PruneConfig, what: Outline, forward: float) -> StagePlan:
    """Return the stage that cuts; `forward` is the teacher's, in seconds an image."""
    images, parts = 0.0, []
    if (depth := settings.depth) is not None:
        parts.append(f"depth, by {depth.rule or depth.by}")
        if depth.rule is None and depth.by == "tinyfusion":
            parts[-1] += f", learned in {depth.tinyfusion.steps} steps of {depth.tinyfusion.batch_size}"
            images += (1 + BACKWARD) * depth.tinyfusion.steps * depth.tinyfusion.batch_size
        elif depth.rule is None:
            images += forwards(depth.by, len(what.family.blocks(what.teacher_config)), depth.num_images)
    if settings.narrows:
        parts.append(f"width, by {settings.importance}")
    return StagePlan(stage="prune", seconds=2.0 + images * forward, what="; ".join(parts))


@torch.inference_mode()
def _forward_seconds(model: Any, family: Family) -> float:
    """Return the time of one forward for one image: best of three, after a first one that warms up."""
    inputs = family.example_inputs(model.config, TRIAL_BATCH)
    durations = []
    for _ in range(4):
        began = time.perf_counter()
        family.prediction(model, **inputs)
        durations.append(time.perf_counter() - began)
    return min(durations[1:]) / TRIAL_BATCH


@torch.inference_mode()
def _activation_bytes(model: Any, family: Family, *, kept: bool) -> int:
    """Return the bytes of one image's activations: all of them (kept for backward), or the two largest alive."""
    sizes: list[int] = []

    def record(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor):
            sizes.append(output.numel() * output.element_size())

    leaves = [module for module in model.modules() if not list(module.children())]
    handles = [leaf.register_forward_hook(record) for leaf in leaves]
    family.prediction(model, **family.example_inputs(model.config))
    for handle in handles:
        handle.remove()
    return sum(sizes) if kept else 2 * max(sizes)


def _memory_mib(models: dict[str, Any], family: Family, batch_size: int) -> float:
    """Return the peak of distillation: both models, the optimiser, one batch."""
    student, big = models["student"], models["teacher"]
    weights = parameter_bytes(big) + TRAINING_COPIES * parameter_bytes(student)
    one_image = _activation_bytes(student, family, kept=True) + _activation_bytes(big, family, kept=False)
    return INTERPRETER_MIB + (weights + batch_size * one_image) / 2**20
