"""Flow matching beside DDPM's kind of schedule: what a timestep means, what is predicted, how it is sampled."""

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

from edgediff.diffusion import schedule
from edgediff.diffusion.noising import prediction_target
from edgediff.diffusion.parameterisation import convert
from edgediff.diffusion.sampler import initial_noise, sample, stepper, words
from edgediff.diffusion.weighting import timestep_weights
from edgediff.errors import BadInputError

FLOW = FlowMatchEulerDiscreteScheduler(shift=3.0)
TIMESTEPS = torch.tensor([1, 250, 500, 1000])


@pytest.fixture
def batch():
    x0, noise = torch.randn(2, 4, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x0, noise, schedule.add_noise(FLOW, x0, noise, TIMESTEPS)


def test_noise_is_mixed_as_diffusers_does(batch):
    x0, noise, noised = batch
    unshifted = FlowMatchEulerDiscreteScheduler()
    expected = unshifted.scale_noise(x0, unshifted.timesteps[1000 - TIMESTEPS], noise)
    torch.testing.assert_close(noised, expected, atol=1e-6, rtol=0)  # sigmas are float32 there


def test_the_noisiest_timestep_is_noise_alone_and_drawn_timesteps_reach_it(batch):
    _, noise, noised = batch
    assert torch.equal(noised[-1], noise[-1])
    assert schedule.spread(FLOW, 3).tolist() == [1, 500, 1000]
    assert schedule.spread(DDPMScheduler(), 3).tolist() == [0, 499, 999]


def test_velocity_and_x0_say_the_same(batch):
    x0, noise, noised = batch
    velocity = prediction_target(FLOW, x0, noise, TIMESTEPS)
    torch.testing.assert_close(velocity, noise - x0)
    torch.testing.assert_close(convert(velocity, noised, TIMESTEPS, FLOW, schedule.FLOW, "sample"), x0)
    back = convert(x0, noised, TIMESTEPS, FLOW, "sample", schedule.FLOW)
    torch.testing.assert_close(back, velocity)


@pytest.mark.parametrize("other", ["epsilon", "v_prediction"])
def test_a_flow_is_never_taken_for_a_prediction_of_ddpm(other, batch):
    _, noise, noised = batch
    with pytest.raises(BadInputError, match=other):
        convert(noise, noised, TIMESTEPS, FLOW, schedule.FLOW, other)
    with pytest.raises(BadInputError, match=other):
        convert(noise, noised, TIMESTEPS, FLOW, other, schedule.FLOW)


@pytest.mark.parametrize("kind", ["min_snr", "snr_truncated", "angular"])
def test_weights_mean_the_same_for_velocity_and_x0(kind, batch):
    x0, noise, noised = batch
    velocity, off = noise - x0, noise - x0 + 0.1
    estimates = [convert(value, noised, TIMESTEPS, FLOW, schedule.FLOW, "sample") for value in (velocity, off)]
    of_velocity, of_x0 = (timestep_weights(kind, FLOW, TIMESTEPS, space) for space in (schedule.FLOW, "sample"))
    errors = (estimates[1] - estimates[0]).square().flatten(1).mean(1)
    # The noisiest timestep has no signal: its ratio is held at 1e-8, whose root is 1e-4.
    torch.testing.assert_close(of_velocity * 0.01, (of_x0 * errors).float(), rtol=1e-3, atol=0)


class Straight:
    """Always points from the noise of seed 7 to one image, as a perfect flow of a single image does."""

    backend, device, precision = "pytorch", "cpu", "fp32"

    def __init__(self, image):
        self.image, self.visited = image, []

    def __call__(self, sample, timestep, **conditioning):
        self.visited.append(float(timestep[0]))
        return initial_noise([7], (1, 4, 4)) - self.image


def test_euler_steps_follow_a_straight_path_to_its_end_at_any_number_of_steps():
    image = torch.linspace(-1, 1, 16).view(1, 1, 4, 4)
    for steps in (1, 4):
        denoiser = Straight(image)
        drawn = sample(
            denoiser, stepper(FLOW, clip_sample=True), [7, 7], shape=(1, 4, 4), num_inference_steps=steps, batch_size=1
        )
        torch.testing.assert_close(drawn, image.expand(2, 1, 4, 4), atol=1e-5, rtol=0)
        assert denoiser.visited[0] == denoiser.visited[steps] == 1000  # the second image starts anew
        assert len(denoiser.visited) == 2 * steps


def test_profiles_name_the_sampler():
    assert "shift 3" in words(FLOW, 7)
    assert words(DDPMScheduler(), 50) == "ddim, eta 0, trailing timesteps"
    assert words(DDPMScheduler(), 60) == "ddim, eta 0, trailing timesteps of uneven distance"


def test_schedules_are_compared_by_what_a_timestep_means():
    assert schedule.same(FLOW, FlowMatchEulerDiscreteScheduler(shift=1.0))
    assert not schedule.same(FLOW, DDPMScheduler())
    assert not schedule.same(DDPMScheduler(beta_schedule="linear"), DDPMScheduler(beta_schedule="squaredcos_cap_v2"))
    assert schedule.same(DDPMScheduler(), DDPMScheduler(prediction_type="v_prediction"))
