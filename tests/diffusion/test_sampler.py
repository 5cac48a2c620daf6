"""Sampling: against closed forms, diffusers' own pipeline, and the promise that a seed is an image."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from edgediff import model_folder
from edgediff.backends.pytorch import PyTorchDenoiser
from edgediff.diffusion.noising import prediction_target
from edgediff.diffusion.sampler import ddim, initial_noise, sample
from edgediff.errors import BadInputError

SHAPE = (1, 28, 28)


@pytest.fixture(scope="module")
def small(small_teacher):
    loaded = model_folder.load(small_teacher)
    return loaded, PyTorchDenoiser(loaded.model, loaded.family)


def draw(denoiser, config, seeds, batch_size=4, steps=4, clip=True):
    scheduler = ddim(config, clip_sample=clip)
    return sample(denoiser, scheduler, seeds, shape=SHAPE, num_inference_steps=steps, batch_size=batch_size)


def test_a_seed_is_an_image_whatever_the_batch_size(small):
    loaded, denoiser = small
    together = draw(denoiser, loaded.scheduler.config, range(5), batch_size=5)
    for batch_size in (1, 2):
        apart = draw(denoiser, loaded.scheduler.config, range(5), batch_size=batch_size)
        # Convolutions of other batch sizes may add up in another order: float32 rounding, nothing more.
        torch.testing.assert_close(apart, together, atol=1e-4, rtol=0)
    assert torch.equal(initial_noise([3], SHAPE)[0], initial_noise([1, 2, 3], SHAPE)[2])


def test_it_is_the_loop_that_diffusers_users_write(small):
    loaded, denoiser = small
    scheduler = DDIMScheduler.from_config(
        loaded.scheduler.config, set_alpha_to_one=False, timestep_spacing="trailing", clip_sample=True
    )
    scheduler.set_timesteps(4)
    x = initial_noise([7, 8], SHAPE)
    with torch.no_grad():
        for timestep in scheduler.timesteps:
            x = scheduler.step(loaded.model(x, timestep).sample, timestep, x).prev_sample
    torch.testing.assert_close(draw(denoiser, loaded.scheduler.config, [7, 8]), x, atol=1e-5, rtol=0)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_a_perfect_denoiser_draws_the_image_it_knows(prediction_type):
    """The prediction that belongs to one x0 leads every seed to it; the last alpha is not quite 1."""
    x0 = torch.linspace(-1, 1, 28).expand(1, *SHAPE)
    scheduler = DDPMScheduler(prediction_type=prediction_type)

    def denoiser(x, timestep):
        alpha = scheduler.alphas_cumprod[timestep].view(-1, 1, 1, 1)
        eps = (x - alpha.sqrt() * x0) / (1 - alpha).sqrt()
        return prediction_target(scheduler, x0.expand_as(x), eps, timestep)

    denoiser.backend = "exact"
    images = draw(denoiser, scheduler.config, range(3), steps=10)
    torch.testing.assert_close(images, x0.expand(3, *SHAPE), atol=0.05, rtol=0)


@pytest.mark.parametrize("steps", [50, 61, 150, 501, 600])
def test_any_number_of_steps_draws_the_distribution(steps):
    """The best denoiser of N(0, 0.5²) is known; 61 steps had a timestep of -1, the others but 50 ended too noisy."""
    scheduler = DDPMScheduler()
    seen = []

    def denoiser(x, timestep):
        seen.append(int(timestep[0]))
        alpha = scheduler.alphas_cumprod[timestep].view(-1, 1, 1, 1)
        return x * (1 - alpha).sqrt() / (0.25 * alpha + 1 - alpha)

    images = draw(denoiser, scheduler.config, range(4), steps=steps, clip=False)
    assert len(seen) == steps and seen[0] == 999 and min(seen) >= 0
    # Every step multiplies x by a known number; their product is what remains of noise of deviation 1.
    assert float(images.std()) == pytest.approx(0.5, rel=0.06)


def test_more_steps_than_the_model_knows(small):
    loaded, denoiser = small
    with pytest.raises(BadInputError, match="beyond the 1000 timesteps of training: 1001"):
        draw(denoiser, loaded.scheduler.config, [0], steps=1001)


def test_the_schedule_is_the_trained_one():
    trained = DDPMScheduler(
        num_train_timesteps=500,
        beta_schedule="squaredcos_cap_v2",
        rescale_betas_zero_snr=True,
        prediction_type="v_prediction",
    )
    scheduler = ddim(trained.config, clip_sample=True)
    assert torch.equal(scheduler.alphas_cumprod, trained.alphas_cumprod)
    assert scheduler.config.prediction_type == "v_prediction"
    scheduler.set_timesteps(7)
    assert scheduler.timesteps[0] == 499  # starts where training was noisiest


def test_clipping_x0_bounds_what_a_diverging_model_draws():
    def shouting(x, timestep):
        return torch.full_like(x, 30.0)

    shouting.backend = "broken"
    config = DDPMScheduler().config
    assert draw(shouting, config, [0], clip=False).abs().max() > 10
    assert draw(shouting, config, [0], clip=True).abs().max() < 5
