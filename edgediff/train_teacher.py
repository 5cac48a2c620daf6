"""The verb `teacher train`: a teacher recipe → a stock diffusers pipeline folder with its model card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor

from edgediff import data, families, model_folder, samples
from edgediff.artifacts import atomic_folder, up_to_date, write_manifest
from edgediff.diffusers_config import from_config
from edgediff.diffusion import schedule
from edgediff.diffusion.noising import check_prediction_type, prediction_target
from edgediff.encoding import learned_text
from edgediff.encoding.learned_text import LearnedText, Spoken
from edgediff.encoding.text import fingerprint
from edgediff.errors import BadInputError, nearest
from edgediff.families import Family
from edgediff.losses import diffusion
from edgediff.model_folder import Loaded
from edgediff.output import Output
from edgediff.recipe import PLACES, WATCHING, TeacherRecipe
from edgediff.skeleton import lay_out
from edgediff.teacher_card import write_card
from edgediff.training import checkpoint, processes
from edgediff.training.announcement import announce
from edgediff.training.batches import TOLD, NoisedBatch, Noising
from edgediff.training.loop import LOG_NAME, train

IDENTITY = ("model", "scheduler", "text_encoder")  # the parts of a recipe that a training's state belongs to
SCHEDULERS = ("DDPMScheduler", "FlowMatchEulerDiscreteScheduler")


class Denoising(torch.nn.Module):
    """The diffusion loss of a model on noised images (Ho et al. 2020, L_simple).

    `told` turns what the batches hold beside samples into the model's arguments, and is trained too where it can be.
    """

    def __init__(self, model: torch.nn.Module, family: Family, scheduler: Any, told: torch.nn.Module) -> None:
        super().__init__()
        self.model, self.family, self.scheduler, self.told = model, family, scheduler, told

    def forward(self, batch: NoisedBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a batch, for `training.loop.train`."""
        prediction = self.family.prediction(self.model, batch.sample, batch.timestep, **self.told(batch.conditioning))
        target = prediction_target(self.scheduler, batch.x0, batch.noise, batch.timestep)
        return diffusion(prediction, target, reduction="mean").mean(), {}


def train_teacher(recipe: TeacherRecipe, out: Path, output: Output, *, resume: bool) -> Path:
    """Train the recipe's model and write `out/teacher`: a pipeline with averaged weights in fp16, and its card.

    The state and the log are kept in `out/checkpoints` and `out/train.jsonl`, the pipelines of the recipe's snapshots
    in `out/snapshots`, each called by its step. Returns: the pipeline's folder.
    Raises: BadInputError for a recipe whose model or images do not fit, a training that is there without `resume`, or
            snapshots of steps that it has left behind; StageFailedError at a non-finite loss; InterruptedStageError on
            SIGINT.
    """
    folder, skeleton = out / "teacher", out / "pipeline"
    encoded = Path(recipe.data.encoded or out / "encoded")
    family = families.of(recipe.model.class_name)
    torch.manual_seed(recipe.training.seed)
    model = from_config(family.model_class, recipe.model.config, "model.config").to(processes.device())
    scheduler = from_config(_scheduler_class(recipe), recipe.scheduler, "scheduler")
    if not schedule.is_flow(scheduler):
        check_prediction_type(scheduler.config.prediction_type)
    parts = skeleton if recipe.parts or recipe.text_encoder else None  # beside a model in pixels there is nothing
    untrained = Loaded(model, scheduler, family, "", parts)
    with processes.main_first():  # who indexes and encodes what the others then find
        if parts and processes.is_main():
            lay_out(parts, recipe, model, scheduler)
        samples.check(recipe.data, untrained, output)  # of both splits: the card's are missed now, not after hours
        text = _learned_text(recipe, untrained, output)
        images = samples.learned(recipe.data, "train", untrained, encoded, output, text)
    inputs, config = {"images": images.sha256}, recipe.model_dump(mode="json")
    aside = [*(f"training.{name}" for name in WATCHING), *PLACES]
    if up_to_date(folder, stage="teacher", config=config, inputs=inputs, aside=aside):
        output.stage("teacher", f"up to date: `{folder}`")
        return folder

    settings = recipe.training
    told = Spoken(text.encoder.to(processes.device())) if text else torch.nn.Identity()
    done = checkpoint.finished_steps(out / "checkpoints") if resume else 0
    _check_snapshots(recipe, out, done)

    def keep(step: int) -> None:
        averaged = family.build(model.config)  # of its own, because halving changes a model in place
        averaged.load_state_dict(model.state_dict())
        with atomic_folder(_snapshot(out, step)) as temporary:
            _write(temporary, averaged, scheduler, parts, text)
            write_manifest(temporary, stage="snapshot", config=config, inputs=inputs, steps=step)

    announce("teacher", recipe.name, settings, out / "checkpoints", output, resume=resume)
    with output.progress("train", settings.steps, done) as progress:
        result = train(
            Denoising(model, family, scheduler, told),
            Noising(images, scheduler, recipe.data, seed=settings.seed, device=processes.device()),
            settings,
            checkpoints=out / "checkpoints",
            log=out / LOG_NAME,
            identity={
                **{key: config[key] for key in IDENTITY if config[key] is not None},
                "data": recipe.data.model_dump(include=TOLD),
                **inputs,
            },
            resume=resume,
            on_step=lambda record: progress.advance(note=f"loss {record.values['loss']:.4f}"),
            snapshots=recipe.snapshots,
            on_snapshot=keep,
        )
    if not processes.is_main():
        return folder
    with atomic_folder(folder) as temporary:
        _write(temporary, model, scheduler, parts, text)
        if text:
            encoded = encoded / fingerprint(temporary)[:16]  # its embeddings change whenever it is trained further
        write_card(temporary, recipe, out / LOG_NAME, result.global_batch, encoded, output)
        write_manifest(
            temporary,
            stage="teacher",
            config=config,
            inputs=inputs,
            steps=result.steps,
            resumed_at=result.resumed_at,
            settings=result.settings,
        )
    output.stage("teacher", f"`{folder}`")
    return folder


def _write(folder: Path, model: Any, scheduler: Any, parts: Path | None, text: LearnedText | None) -> None:
    """Write a stock pipeline, its model in fp16, to which it is converted in place."""
    model_folder.save(folder, model.half(), scheduler, parts)
    if text:
        text.save(folder)


def _snapshot(out: Path, step: int) -> Path:
    return out / "snapshots" / str(step)


def _check_snapshots(recipe: TeacherRecipe, out: Path, done: int) -> None:
    """Raise BadInputError for a snapshot that was not kept when its step was done."""
    lost = [step for step in recipe.snapshots if step <= done and not _snapshot(out, step).is_dir()]
    if lost:
        raise BadInputError(
            f"snapshots: step {lost[0]} was not kept, and the training stands at step {done}",
            f"leave that step out, or delete `{out / 'checkpoints'}` to start again",
        )


def _scheduler_class(recipe: TeacherRecipe) -> Any:
    """Return the class of the recipe's noise schedule.

    Raises: BadInputError for one that no training here can use.
    """
    name = recipe.scheduler.get("_class_name", SCHEDULERS[0])
    if name not in SCHEDULERS:
        raise BadInputError(f"scheduler._class_name: {name} cannot be trained with", nearest(str(name), SCHEDULERS))
    return getattr(diffusers, name)


def _learned_text(recipe: TeacherRecipe, untrained: Loaded, output: Output) -> LearnedText | None:
    """Return the text encoder that the recipe wants trained, which knows the words of all training captions.

    Raises: BadInputError for one that the pipeline or its model cannot use.
    """
    if recipe.text_encoder is None:
        return None
    if recipe.pipeline != learned_text.PIPELINE:
        raise BadInputError(
            f"text_encoder: a {recipe.pipeline} cannot be trained with one",
            f"choose `pipeline: {learned_text.PIPELINE}`, or take a trained one from `parts`",
        )
    images = data.load(recipe.data, "train", shape=samples.image_shape(untrained), output=output)
    text = LearnedText(recipe.text_encoder, images.captions(torch.arange(len(images))))
    given, wanted = text.encoder.config.hidden_size, untrained.model.config.cross_attention_dim
    if given != wanted:
        raise BadInputError(f"text_encoder.hidden_size is not the model's cross_attention_dim: {given}, {wanted}")
    return text
