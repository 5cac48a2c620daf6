"""What the teacher says of a noised batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from edgediff.data.order import mixed
from edgediff.diffusion.parameterisation import Threshold, convert
from edgediff.diffusion.schedule import prediction_type
from edgediff.errors import BadInputError
from edgediff.families import Config, Family
from edgediff.losses import LOSSES
from edgediff.model_folder import Loaded
from edgediff.recipe import DistillConfig
from edgediff.training.batches import NoisedBatch, Noising

TEACHER_STREAM = 2**35  # the seed of which teacher speaks to which entry


@dataclass(frozen=True)
class Targets:
    """The teacher's prediction (B, C, H, W), in its own prediction type, and its feature maps when asked for."""

    prediction: Tensor
    features: tuple[Tensor, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TaughtBatch(NoisedBatch):
    """A noised batch with what the teacher says of it; None when nothing is learned from a teacher."""

    targets: Targets | None


class Teaching(Protocol):
    """Where targets come from."""

    def entries(self, positions: Tensor) -> Tensor:
        """Return the entries (B,) that training visits at these positions (B,)."""

    def __call__(self, entries: Tensor, batch: NoisedBatch) -> Targets:
        """Return the targets of the entries' noised batch."""


@dataclass(frozen=True)
class LiveTeacher:
    """Runs the teacher on every batch; every position is an entry of its own.

    Of several teachers (checkpoints of one, Wang et al. 2022; assistants, Son et al. 2021) each entry has one, drawn
    for it once: the expected loss is the mean over all, at the cost of one.
    """

    teachers: Sequence[Loaded]  # at least one
    points: Sequence[Sequence[str]]  # of every teacher: the feature points whose maps are asked for, if any
    threshold: Threshold = "none"  # of x0, where teachers of several prediction types are made one
    full_precision: bool = False  # without autocast: a conversion may amplify the rounding of halves 157 times

    def entries(self, positions: Tensor) -> Tensor:
        """Return the positions themselves: no noise is ever seen twice."""
        return positions

    @torch.no_grad()
    def __call__(self, entries: Tensor, batch: NoisedBatch) -> Targets:
        """Return what the teachers say now, in float32 and in the prediction type of the first one."""
        if len(self.teachers) == 1:
            return self._of(0, batch.sample, batch.timestep, batch.conditioning)
        drawn = torch.tensor([mixed(TEACHER_STREAM, entry) % len(self.teachers) for entry in entries.tolist()])
        maps: list[Tensor] = []
        for index in range(len(self.teachers)):
            rows = (drawn == index).to(batch.sample.device)
            if rows.any():
                conditioning = {name: values[rows] for name, values in batch.conditioning.items()}
                said = self._of(index, batch.sample[rows], batch.timestep[rows], conditioning)
                maps = maps or [
                    part.new_empty(len(rows), *part.shape[1:]) for part in (said.prediction, *said.features)
                ]
                for whole, part in zip(maps, (said.prediction, *said.features), strict=True):
                    whole[rows] = part
        return Targets(maps[0], tuple(maps[1:]))

    def _of(self, index: int, sample: Tensor, timestep: Tensor, conditioning: Mapping[str, Tensor]) -> Targets:
        """Return what one teacher says of samples (B, C, H, W)."""
        teacher = self.teachers[index]
        with torch.autocast(sample.device.type, enabled=False) if self.full_precision else nullcontext():
            prediction, features = teacher.family.prediction_and_features(
                teacher.model, self.points[index], sample, timestep, **conditioning
            )
        first, own = (prediction_type(of.scheduler) for of in (self.teachers[0], teacher))
        prediction = convert(
            prediction.float(), sample, timestep, teacher.scheduler, own, first, threshold=self.threshold
        )
        return Targets(prediction, tuple(map_.float() for map_ in features))


class TaughtBatches:
    """The batches of a distillation, for `training.loop.train`."""

    def __init__(self, noising: Noising, teaching: Teaching | None) -> None:
        self.noising, self.teaching = noising, teaching

    def __call__(self, step: int, positions: Tensor) -> TaughtBatch:
        """Return the batch at positions (B,) of the training."""
        if self.teaching is None:
            return TaughtBatch(**vars(self.noising(step, positions)), targets=None)
        entries = self.teaching.entries(positions)
        batch = self.noising(step, entries)
        return TaughtBatch(**vars(batch), targets=self.teaching(entries, batch))


def x0_threshold(teacher: Loaded, config: DistillConfig) -> Threshold:
    """Return what happens to a teacher's x0 where its prediction is converted; latents have no range to be held to."""
    return "none" if teacher.autoencoder else config.x0_threshold


def uses_features(config: DistillConfig) -> bool:
    """Tell whether a loss of this config looks at feature maps."""
    return any(LOSSES[name].kind == "feature" for name in config.kd)


def feature_points(config: DistillConfig, models: Sequence[tuple[Family, Config]]) -> list[tuple[str, ...]]:
    """Return the feature points of every model, equally many; none where no loss of this config looks at feature maps.

    Args: models: the student, then its teachers; each its family and its config.
    Raises: BadInputError for teachers of another family than the student's, a family without feature points, and
    teachers whose feature maps differ in width.
    """
    if not uses_features(config):
        return [() for _ in models]
    (family, _), *teachers = models
    for other, _ in teachers:
        if other.name != family.name:
            raise BadInputError(
                f"feature losses need teachers of the student's family: {family.name}, teacher: {other.name}",
                "choose losses that look at predictions only, such as place or output",
            )
    configs = [own for _, own in models]
    points = [family.feature_points(own, configs) for own in configs]
    if len(teachers) > 1 and len(set(map(family.feature_widths, configs[1:], points[1:]))) > 1:
        raise BadInputError(
            "feature losses need teachers of equal widths, and these differ",
            "choose losses that look at predictions only, or `guidance: last`",
        )
    return points
