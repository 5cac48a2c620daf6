"""Held-out images under fixed noise, and what a model says of them beside its teacher."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from edgediff.backends import best_device
from edgediff.backends.pytorch import PyTorchDenoiser
from edgediff.data.images import Images
from edgediff.diffusion import schedule
from edgediff.diffusion.parameterisation import convert
from edgediff.diffusion.sampler import initial_noise
from edgediff.errors import StageFailedError
from edgediff.model_folder import Loaded


@dataclass(frozen=True)
class HeldOut:
    """Clean samples (B, C, H, W), the one noise (B, C, H, W) that each of them gets at every timestep, and what
    belongs to them: further arguments of the model's forward, by name.
    """

    x0: Tensor
    noise: Tensor
    conditioning: Mapping[str, Tensor]

    def noised(self, teacher: Loaded, timestep: Tensor) -> Tensor:
        """Return x_t (B, C, H, W) at the timesteps (B,)."""
        return schedule.add_noise(teacher.scheduler, self.x0, self.noise, timestep)

    def repeated(self, count: int) -> HeldOut:
        """Return one sample (1, C, H, W) as a batch of `count` equal ones."""
        x0, noise = (value.expand(count, *value.shape[1:]) for value in (self.x0, self.noise))
        conditioning = {name: rows.expand(count, *rows.shape[1:]) for name, rows in self.conditioning.items()}
        return HeldOut(x0, noise, conditioning)


def held_out(images: Images, indices: Tensor, batch_size: int) -> Iterator[HeldOut]:
    """Yield the images of `indices` (N,) in batches; an image's noise follows from its index alone."""
    for part in indices.split(batch_size):
        yield HeldOut(images.batch(part), initial_noise(part.tolist(), images.shape), images.conditioning(part))


@dataclass(frozen=True)
class Prediction:
    """A model's prediction in the teacher's prediction type, and the x0 that it means: (B, C, H, W) both."""

    value: Tensor
    x0: Tensor


def predict(name: str, model: Loaded, batch: HeldOut, timestep: Tensor, teacher: Loaded) -> Prediction:
    """Return what a model says of a batch's x_t at the timesteps (B,), exactly converted.

    Raises: StageFailedError, calling the model by `name`, when it is not finite.
    """
    sample = batch.noised(teacher, timestep)
    said = PyTorchDenoiser(model.model, model.family, best_device())(sample, timestep, **batch.conditioning)
    if not said.isfinite().all():
        raise StageFailedError(
            f"the {name} predicts NaN or infinity at timestep {int(timestep[0])}",
            "a training that diverged leaves such weights: look at its log",
        )
    return Prediction(
        in_type_of(teacher, said, model, sample, timestep),
        convert(said, sample, timestep, teacher.scheduler, schedule.prediction_type(model.scheduler), "sample"),
    )


def in_type_of(teacher: Loaded, said: Tensor, model: Loaded, sample: Tensor, timestep: Tensor) -> Tensor:
    """Return a model's prediction (B, C, H, W) of x_t in the teacher's prediction type; differentiable."""
    own, theirs = (schedule.prediction_type(of.scheduler) for of in (model, teacher))
    return convert(said, sample, timestep, teacher.scheduler, own, theirs)
