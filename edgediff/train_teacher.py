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
from edgediff.artifacts import atomic_folder, digest, up_to_date, write_manifest
from edgediff.backends import best_device
from edgediff.data.images import Images
from edgediff.diffusion.noising import check_prediction_type
from edgediff.errors import BadInputError, nearest
from edgediff.families import Family
from edgediff.losses import diffusion
from edgediff.output import Output
from edgediff.recipe import TeacherRecipe, TrainingConfig
from edgediff.teacher_card import write_card
from edgediff.training import checkpoint
from edgediff.training.batches import noised_batch
from edgediff.training.loop import LOG_NAME, train


class Denoising:
    """The diffusion loss of a model on images (Ho et al. 2020, L_simple), with antithetic timesteps."""

    def __init__(
        self, model: torch.nn.Module, family: Family, scheduler: DDPMScheduler, images: Images, config: TrainingConfig
    ) -> None:
        """Take what a step needs; every draw comes from the config's seed and the step."""
        self.model, self.family, self.scheduler, self.images, self.config = model, family, scheduler, images, config
        self.device = next(model.parameters()).device

    def __call__(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of training step `step`, for `training.loop.train`."""
        batch = noised_batch(
            step, generator, images=self.images, scheduler=self.scheduler, config=self.config, device=self.device
        )
        prediction = self.family.prediction(self.model, batch.sample, batch.timestep)
        return diffusion(prediction, batch.target, reduction="mean"), {}


def train_teacher(recipe: TeacherRecipe, out: Path, output: Output, *, resume: bool) -> Path:
    """Train the recipe's model and write `out/teacher`: a pipeline with averaged weights in fp16, and its card.

    The state and the log are kept in `out/checkpoints` and `out/train.jsonl`. Returns: the pipeline's folder.
    Raises: BadInputError for a recipe whose model or images do not fit, or an unfinished training without `resume`;
            StageFailedError at a non-finite loss; InterruptedStageError on SIGINT.
    """
    folder = out / "teacher"
    family = families.of(recipe.model.class_name)
    torch.manual_seed(recipe.training.seed)
    model = _from_config(family.model_class, recipe.model.config, "model.config").to(best_device())
    scheduler = _from_config(DDPMScheduler, recipe.scheduler, "scheduler")
    check_prediction_type(scheduler.config.prediction_type)
    shape = family.sample_shape(model.config)
    images = data.load(recipe.data, "train", shape=shape)
    data.load(recipe.data, "test", shape=shape)  # of the card: missing ones are told of now
    inputs, config = {"images": images.sha256}, recipe.model_dump(mode="json")
    if up_to_date(folder, stage="teacher", config=config, inputs=inputs):
        output.stage("teacher", f"up to date: `{folder}`")
        return folder

    settings = recipe.training
    done = checkpoint.finished_steps(out / "checkpoints") if resume else 0
    output.stage("teacher", f"{recipe.name}, {settings.steps} steps of {settings.batch_size}")
    with output.progress("train", settings.steps, done) as progress:
        result = train(
            model,
            Denoising(model, family, scheduler, images, settings),
            settings,
            checkpoints=out / "checkpoints",
            log=out / LOG_NAME,
            identity=digest({"recipe": {key: config[key] for key in ("model", "scheduler")}, **inputs}),
            resume=resume,
            on_step=lambda record: progress.advance(note=f"loss {record.values['loss']:.4f}"),
        )
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
