"""The verb `teacher train`: a teacher recipe → a stock diffusers pipeline folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import DDPMPipeline, DDPMScheduler
from torch import Tensor

from edgediff import data, families
from edgediff.artifacts import atomic_folder, digest, up_to_date, write_manifest
from edgediff.data.order import batch_indices
from edgediff.diffusion.noising import antithetic_timesteps, prediction_target
from edgediff.losses import diffusion
from edgediff.recipe import TeacherRecipe
from edgediff.training.loop import LOG_NAME, StepRecord, train


def train_teacher(recipe: TeacherRecipe, out: Path, *, resume: bool, on_step: Callable[[StepRecord], None]) -> Path:
    """Train the recipe's model and write `out/teacher`, a pipeline with averaged weights in fp16, and its manifest.

    The state and the log are kept in `out/checkpoints` and `out/train.jsonl`. Returns: the pipeline's folder.
    """
    folder = out / "teacher"
    images = data.load(recipe.data, "train")
    inputs = {"images": images.sha256}
    config = recipe.model_dump(mode="json")
    if up_to_date(folder, stage="teacher", config=config, inputs=inputs):
        return folder
    family = families.of(recipe.model.class_name)
    torch.manual_seed(recipe.training.seed)
    model = family.build(recipe.model.config)
    scheduler = DDPMScheduler.from_config(recipe.scheduler)

    def objective(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        batch_size = recipe.training.batch_size
        x0 = images.batch(batch_indices(step, num_images=len(images), batch_size=batch_size, seed=recipe.training.seed))
        noise = torch.randn(x0.shape, generator=generator)
        timestep = antithetic_timesteps(batch_size, scheduler.config.num_train_timesteps, generator)
        prediction = family.prediction(model, scheduler.add_noise(x0, noise, timestep), timestep)
        return diffusion(prediction, prediction_target(scheduler, x0, noise, timestep), reduction="mean"), {}

    result = train(
        model,
        objective,
        recipe.training,
        checkpoints=out / "checkpoints",
        log=out / LOG_NAME,
        identity=digest({"recipe": {key: config[key] for key in ("model", "scheduler")}, **inputs}),
        resume=resume,
        on_step=on_step,
    )
    with atomic_folder(folder) as temporary:
        DDPMPipeline(unet=model.half(), scheduler=scheduler).save_pretrained(temporary)
        write_manifest(
            temporary,
            stage="teacher",
            config=config,
            inputs=inputs,
            steps=result.steps,
            resumed_at=result.resumed_at,
            settings=result.settings,
        )
    return folder
