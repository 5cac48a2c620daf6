"""The verb `teacher train`: a teacher recipe → a stock diffusers pipeline folder with its model card."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from edgediff import data, families, model_folder
from edgediff.artifacts import atomic_folder, up_to_date, write_manifest
from edgediff.diffusion.noising import check_prediction_type, prediction_target
from edgediff.errors import BadInputError, nearest
from edgediff.families import Family
from edgediff.losses import diffusion
from edgediff.output import Output
from edgediff.recipe import TeacherRecipe
from edgediff.teacher_card import write_card
from edgediff.training import checkpoint, processes
from edgediff.training.batches import NoisedBatch, Noising
from edgediff.training.loop import LOG_NAME, train


class Denoising(torch.nn.Module):
    """The diffusion loss of a model on noised images (Ho et al. 2020, L_simple)."""

    def __init__(self, model: torch.nn.Module, family: Family, scheduler: DDPMScheduler) -> None:
        super().__init__()
        self.model, self.family, self.scheduler = model, family, scheduler

    def forward(self, batch: NoisedBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a batch, for `training.loop.train`."""
        prediction = self.family.prediction(self.model, batch.sample, batch.timestep)
        target = prediction_target(self.scheduler, batch.x0, batch.noise, batch.timestep)
        return diffusion(prediction, target, reduction="mean").mean(), {}


def train_teacher(recipe: TeacherRecipe, out: Path, output: Output, *, resume: bool) -> Path:
    """Train the recipe's model and write `out/teacher`: a pipeline with averaged weights in fp16, and its card.

    The state and the log are kept in `out/checkpoints` and `out/train.jsonl`. Returns: the pipeline's folder.
    Raises: BadInputError for a recipe whose model or images do not fit, or an unfinished training without `resume`;
            StageFailedError at a non-finite loss; InterruptedStageError on SIGINT.
    """
    folder = out / "teacher"
    family = families.of(recipe.model.class_name)
    torch.manual_seed(recipe.training.seed)
    model = _from_config(family.model_class, recipe.model.config, "model.config").to(processes.device())
    scheduler = _from_config(DDPMScheduler, recipe.scheduler, "scheduler")
    check_prediction_type(scheduler.config.prediction_type)
    shape = family.sample_shape(model.config)
    with processes.main_first():  # who indexes what the others then find indexed
        images = data.load(recipe.data, "train", shape=shape, output=output)
        data.load(recipe.data, "test", shape=shape, output=output)  # of the card: missing ones are told of now
    inputs, config = {"images": images.sha256}, recipe.model_dump(mode="json")
    if up_to_date(folder, stage="teacher", config=config, inputs=inputs):
        output.stage("teacher", f"up to date: `{folder}`")
        return folder

    settings = recipe.training
    done = checkpoint.finished_steps(out / "checkpoints") if resume else 0
    output.stage("teacher", f"{recipe.name}, {settings.steps} steps of {settings.batch_size}")
    with output.progress("train", settings.steps, done) as progress:
        result = train(
            Denoising(model, family, scheduler),
            Noising(images, scheduler, seed=settings.seed, device=processes.device()),
            settings,
            checkpoints=out / "checkpoints",
            log=out / LOG_NAME,
            identity={**{key: config[key] for key in ("model", "scheduler")}, **inputs},
            resume=resume,
            on_step=lambda record: progress.advance(note=f"loss {record.values['loss']:.4f}"),
        )
    if not processes.is_main():
        return folder
    with atomic_folder(folder) as temporary:
        model_folder.save(temporary, model.half(), scheduler)
        write_card(temporary, recipe, out / LOG_NAME, output)
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


def _from_config(kind: Any, config: Mapping[str, Any], key: str) -> Any:
    """Make a stock diffusers object of a config in the recipe, which diffusers itself reads with unknown keys left out.

    Raises: BadInputError, naming the recipe's `key`, for unknown keys and for values that the class refuses.
    """
    known = set(inspect.signature(kind.__init__).parameters) - {"self"}
    unknown = [name for name in config if name not in known and not name.startswith("_")]
    if unknown:
        raise BadInputError("\n".join(f"{key}.{name}: unknown key, {nearest(name, known)}" for name in unknown))
    try:
        return kind.from_config(dict(config))
    except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError) as error:
        raise BadInputError(f"{key}: {kind.__name__} refuses it: {str(error).splitlines()[0]}") from error
