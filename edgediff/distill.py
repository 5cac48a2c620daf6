"""The verb `distill`: teacher and pruned student → student, with LIFT/PLACE or one of its rivals."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from edgediff import data, model_folder, roles
from edgediff.artifacts import atomic_folder, content_hash, digest, read_json, up_to_date, write_manifest
from edgediff.backends import best_device
from edgediff.data.images import Images
from edgediff.losses import KD, diffusion
from edgediff.model_folder import Loaded
from edgediff.output import Output
from edgediff.recipe import DistillConfig, Recipe
from edgediff.results import TrainingSummary
from edgediff.run import Run
from edgediff.training import checkpoint, log
from edgediff.training.batches import noised_batch
from edgediff.training.loop import train


class Distillation:
    """The objective diffusion_weight · L_diff + kd_weight · L_KD of one student and its frozen teacher.

    Both see the same noised batch.
    """

    def __init__(self, student: Loaded, teacher: Loaded, images: Images, config: DistillConfig) -> None:
        """Take both models as loaded; the teacher is only read, and not at all with `kd: none`."""
        self.student, self.teacher, self.images, self.config = student, teacher, images, config
        self.kd = KD[config.kd]
        self.device = next(student.model.parameters()).device

    def __call__(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of training step `step` and its parts, for `training.loop.train`."""
        config, scheduler = self.config, self.teacher.scheduler
        batch = noised_batch(
            step, generator, images=self.images, scheduler=scheduler, config=config.training, device=self.device
        )
        prediction = self.student.family.prediction(self.student.model, batch.sample, batch.timestep)
        data_term = diffusion(prediction, batch.target, reduction=config.reduction)
        loss = config.diffusion_weight * data_term
        values = {"diffusion": float(data_term.detach())}
        if self.kd is None:
            return loss, values
        with torch.no_grad():
            target = self.teacher.family.prediction(self.teacher.model, batch.sample, batch.timestep)
        terms = self.kd(prediction, target, group_size=config.group_size, reduction=config.reduction)
        parts = {name: float(value.detach()) for name, value in terms._asdict().items() if name != "total"}
        return loss + config.kd_weight * terms.total, {**values, "kd": float(terms.total.detach()), **parts}


def distill(run: Run, recipe: Recipe, output: Output, *, resume: bool = False) -> TrainingSummary:
    """Write `run.student` with averaged weights, and the curve to `run.train_log`.

    Args: resume: continue from `run.checkpoints` where an earlier run was stopped or killed.
    Raises: BadInputError when there is nothing pruned yet, or an unfinished training and no `resume`;
    StageFailedError at a non-finite loss; InterruptedStageError on SIGINT.
    """
    source = roles.folder(run, recipe, "pruned")
    big = model_folder.load(roles.folder(run, recipe, "teacher"))
    images = data.load(recipe.data, "train", shape=big.sample_shape)
    config = {"distill": recipe.distill.model_dump(mode="json"), "data": recipe.data.model_dump(mode="json")}
    inputs = {"teacher": big.sha256, "pruned": content_hash(source), "images": images.sha256}
    if up_to_date(run.student, stage="distill", config=config, inputs=inputs):
        summary = TrainingSummary.model_validate(read_json(run.student / "manifest.json")["training"])
        output.stage("distill", f"up to date: {summary.steps} steps with kd {summary.kd}")
        return summary

    small = model_folder.load(source)
    settings = recipe.distill.training
    output.stage("distill", f"kd {recipe.distill.kd}, {settings.steps} steps of {settings.batch_size}")
    for loaded in (small, big):
        loaded.model.to(best_device())
    objective = Distillation(small, big, images, recipe.distill)
    done = checkpoint.finished_steps(run.checkpoints) if resume else 0
    with output.progress("distill", settings.steps, done) as progress:
        result = train(
            small.model,
            objective,
            settings,
            checkpoints=run.checkpoints,
            log=run.train_log,
            identity=digest({"distill": _untrained(recipe.distill), **inputs}),
            resume=resume,
            on_step=lambda record: progress.advance(note=_note(record.values)),
        )
    summary = TrainingSummary(
        kd=recipe.distill.kd,
        steps=result.steps,
        batch_size=settings.batch_size,
        steps_per_second=result.steps_per_second,
        final=log.last_mean(log.read(run.train_log)),
    )
    with atomic_folder(run.student) as temporary:
        model_folder.save(temporary, small.model, small.scheduler)
        write_manifest(
            temporary,
            stage="distill",
            config=config,
            inputs=inputs,
            training=summary.model_dump(mode="json"),
            resumed_at=result.resumed_at,
            settings=result.settings,
        )
    output.stage("distill", f"{summary.steps} steps, {summary.steps_per_second:.2f} a second")
    return summary


def _untrained(config: DistillConfig) -> dict[str, Any]:
    """Return the part of the config that `train` does not see itself."""
    return config.model_dump(mode="json", exclude={"training"})


def _note(values: dict[str, float]) -> str:
    """Word the quantities of a step for the progress line."""
    shown = ("loss", "coarse", "fine", "slope", "intercept", "fine_weight")
    return "  ".join(f"{name} {values[name]:.3g}" for name in shown if name in values)
