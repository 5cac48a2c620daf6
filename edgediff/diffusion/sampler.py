"""Deterministic sampling over any Denoiser: a seed is an image.

DDIM with eta 0 (Song et al. 2021), and Euler steps for flow matching, which are the same thing for straight paths.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from edgediff.diffusion.denoiser import Denoiser
from edgediff.diffusion.schedule import is_flow
from edgediff.errors import BadInputError


class TrailingDDIM(DDIMScheduler):
    """DDIM from the noisiest timestep on, each of whose steps ends where the next one begins.

    diffusers' own does the same where the number of steps divides that of the training's timesteps. Elsewhere its steps
    are all of `T // n`, which leaves noise that the next one does not know of, and rounding may add a timestep of -1.
    """

    timesteps: Tensor  # (steps,), falling

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        """Choose the timesteps: exactly as many as are asked for."""
        super().set_timesteps(num_inference_steps, device)
        self.timesteps = self.timesteps[:num_inference_steps]

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, **options: Any) -> Any:
        """Go from a timestep to the next of `timesteps`, from the last to the image."""
        later = self.timesteps[self.timesteps < timestep]
        until = int(later[0]) if len(later) else -1
        # The parent's step is of `T // num_inference_steps`, which this makes the very distance.
        self.num_inference_steps = Fraction(self.config.num_train_timesteps, int(timestep) - until)
        return super().step(model_output, timestep, sample, **options)


def words(scheduler: Any, num_inference_steps: int) -> str:
    """Return what `sample` does with models of this scheduler, in words for evaluation profiles."""
    if is_flow(scheduler):
        return f"euler, flow matching, shift {scheduler.config.shift:g}"
    return "ddim, eta 0, trailing timesteps" + (" of uneven distance" if uneven(scheduler, num_inference_steps) else "")


def uneven(scheduler: Any, num_inference_steps: int) -> bool:
    """Tell whether DDIM's steps are not all of one length, in which case they once ended at other timesteps."""
    return not is_flow(scheduler) and bool(scheduler.config.num_train_timesteps % num_inference_steps)


def check_steps(scheduler_config: Mapping[str, Any], num_inference_steps: int) -> None:
    """Raise BadInputError for more inference steps than the model was trained with."""
    trained = scheduler_config["num_train_timesteps"]
    if num_inference_steps > trained:
        raise BadInputError(f"num_inference_steps is beyond the {trained} timesteps of training: {num_inference_steps}")


def ddim(scheduler_config: Mapping[str, Any], *, clip_sample: bool) -> TrailingDDIM:
    """Return the DDIM scheduler of a trained model's own noise schedule and prediction type."""
    keep = (
        *("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas"),
        *("rescale_betas_zero_snr", "prediction_type", "clip_sample_range"),
    )
    return TrailingDDIM(
        **{key: scheduler_config[key] for key in keep if key in scheduler_config},
        clip_sample=clip_sample,
        set_alpha_to_one=False,
        timestep_spacing="trailing",
    )


def stepper(scheduler: Any, *, clip_sample: bool) -> Any:
    """Return the scheduler that samples from a model trained with `scheduler`; flow matching clips no x0."""
    if is_flow(scheduler):
        return FlowMatchEulerDiscreteScheduler.from_config(scheduler.config)
    return ddim(scheduler.config, clip_sample=clip_sample)


def initial_noise(seeds: Sequence[int], shape: tuple[int, int, int]) -> Tensor:
    """Return noise (len(seeds), C, H, W), each image drawn from its own seed."""
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


@torch.inference_mode()
def sample(
    denoiser: Denoiser,
    scheduler: Any,
    seeds: Sequence[int],
    *,
    shape: tuple[int, int, int],
    num_inference_steps: int,
    batch_size: int,
    conditioning: Callable[[Tensor], Mapping[str, Tensor]] = lambda places: {},
    on_images: Callable[[int], None] = lambda count: None,
) -> Tensor:
    """Draw one image a seed; `batch_size` changes the speed, not the images (beyond float rounding).

    Args: scheduler: a `stepper`. shape: (C, H, W).
          conditioning: from places (B,) in `seeds` to the rows of the model's other inputs.
          on_images: called with the number of images finished since the last call.
    Returns: (len(seeds), C, H, W) float32, not clamped: how far values leave [-1, 1] shows a diverging model.
    Raises: BadInputError for more inference steps than the model was trained with.
    """
    check_steps(scheduler.config, num_inference_steps)
    images = []
    for places in torch.arange(len(seeds)).split(batch_size):
        scheduler.set_timesteps(num_inference_steps)  # anew: some count the steps that they have taken
        x = initial_noise([seeds[place] for place in places], shape)
        rows = conditioning(places)
        for timestep in scheduler.timesteps:
            prediction = denoiser(x, timestep.expand(len(x)), **rows)
            x = scheduler.step(prediction, timestep, x).prev_sample
        images.append(x)
        on_images(len(x))
    return torch.cat(images)
