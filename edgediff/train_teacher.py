"""The verb `teacher train`: a teacher recipe → a stock diffusers pipeline folder with its model card."""

from __future__ import annotations

import inspect
import shutil
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor

from edgediff import families, model_folder, samples
from edgediff.artifacts import atomic_folder, read_object, up_to_date, write_json, write_manifest
from edgediff.diffusers_config import from_config
from edgediff.diffusion import schedule
from edgediff.diffusion.noising import check_prediction_type, prediction_target
from edgediff.errors import BadInputError, nearest
from edgediff.families import Family
from edgediff.losses import diffusion
from edgediff.model_folder import Loaded
from edgediff.output import Output
from edgediff.recipe import TeacherRecipe
from edgediff.teacher_card import write_card
from edgediff.training import checkpoint, processes
from edgediff.training.batches import NoisedBatch, Noising
from edgediff.training.loop import LOG_NAME, train

SCHEDULERS = ("DDPMScheduler", "FlowMatchEulerDiscreteScheduler")


class Denoising(torch.nn.Module):
    """The diffusion loss of a model on noised images (Ho et al. 2020, L_simple)."""

    def __init__(self, model: torch.nn.Module, family: Family, scheduler: Any) -> None:
        super().__init__()
        self.model, self.family, self.scheduler = model, family, scheduler

    def forward(self, batch: NoisedBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a batch, for `training.loop.train`."""
        prediction = self.family.prediction(self.model, batch.sample, batch.timestep, **batch.conditioning)
        target = prediction_target(self.scheduler, batch.x0, batch.noise, batch.timestep)
        return diffusion(prediction, target, reduction="mean").mean(), {}


def train_teacher(recipe: TeacherRecipe, out: Path, output: Output, *, resume: bool) -> Path:
    """Train the recipe's model and write `out/teacher`: a pipeline with averaged weights in fp16, and its card.

    The state and the log are kept in `out/checkpoints` and `out/train.jsonl`. Returns: the pipeline's folder.
    Raises: BadInputError for a recipe whose model or images do not fit, or an unfinished training without `resume`;
            StageFailedError at a non-finite loss; InterruptedStageError on SIGINT.
    """
    folder, skeleton = out / "teacher", out / "pipeline"
    encoded = Path(recipe.data.encoded or out / "encoded")
    family = families.of(recipe.model.class_name)
    torch.manual_seed(recipe.training.seed)
    model = from_config(family.model_class, recipe.model.config, "model.config").to(processes.device())
    scheduler = from_config(_scheduler_class(recipe), recipe.scheduler, "scheduler")
    if not schedule.is_flow(scheduler):
        check_prediction_type(scheduler.config.prediction_type)
    parts = skeleton if recipe.parts else None  # a model that works in pixels needs nothing beside it
    untrained = Loaded(model, scheduler, family, "", parts)
    with processes.main_first():  # who indexes and encodes what the others then find
        if parts and processes.is_main():
            _lay_out(parts, recipe, family)
        samples.check(recipe.data, untrained, output)  # of both splits: the card's are missed now, not after hours
        images = samples.learned(recipe.data, "train", untrained, encoded, output)
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
            Noising(images, scheduler, recipe.data, seed=settings.seed, device=processes.device()),
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
        model_folder.save(temporary, model.half(), scheduler, parts)
        write_card(temporary, recipe, out / LOG_NAME, encoded, output)
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


def _scheduler_class(recipe: TeacherRecipe) -> Any:
    """Return the class of the recipe's noise schedule.

    Raises: BadInputError for one that no training here can use.
    """
    name = recipe.scheduler.get("_class_name", SCHEDULERS[0])
    if name not in SCHEDULERS:
        raise BadInputError(f"scheduler._class_name: {name} cannot be trained with", nearest(str(name), SCHEDULERS))
    return getattr(diffusers, name)


def _lay_out(skeleton: Path, recipe: TeacherRecipe, family: Family) -> None:
    """Write what a pipeline holds beside its model: an index, and the parts that were trained before.

    Raises: BadInputError for an unknown pipeline class, or parts that it needs and the recipe's folder lacks.
    """
    kind = getattr(diffusers, recipe.pipeline, None)
    if kind is None:
        raise BadInputError(f"pipeline: diffusers has no {recipe.pipeline}", "use DDPMPipeline or DiTPipeline")
    own = {family.component: family.class_name, "scheduler": _scheduler_class(recipe).__name__}
    index: dict[str, Any] = {"_class_name": recipe.pipeline, "_diffusers_version": diffusers.__version__}
    index |= {part: ["diffusers", of_class] for part, of_class in own.items()}
    with atomic_folder(skeleton) as temporary:
        for part, parameter in list(inspect.signature(kind.__init__).parameters.items())[1:]:
            source = Path(recipe.parts or "") / part
            if part in own:
                continue
            if recipe.parts and source.is_dir():
                shutil.copytree(source, temporary / part)
                index[part] = _class_of(source)
            elif part in kind._optional_components:
                index[part] = [None, None]
            elif parameter.default is inspect.Parameter.empty:
                raise BadInputError(
                    f"parts: {recipe.pipeline} needs `{part}`, which is not there: `{source}`",
                    "`edgediff teacher train-autoencoder` makes a `vae`",
                )
        write_json(temporary / model_folder.INDEX, index)


def _class_of(part: Path) -> list[str]:
    """Return library and class of a pipeline's part, as its index names them."""
    config = read_object(part / "config.json") if (part / "config.json").is_file() else {}
    if "_class_name" in config:
        return ["diffusers", config["_class_name"]]
    if "architectures" in config:
        return ["transformers", config["architectures"][0]]
    return ["transformers", read_object(part / "tokenizer_config.json")["tokenizer_class"]]
