"""Predictions in three spaces: exact conversions, thresholds, and the weights of timesteps."""

import itertools

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from edgediff.diffusion.noising import PREDICTION_TYPES, prediction_target
from edgediff.diffusion.parameterisation import coefficients, convert, snr, thresholded
from edgediff.diffusion.weighting import angular_speed, timestep_weights
from edgediff.errors import BadInputError

TIMESTEPS = torch.tensor([0, 1, 250, 500, 900, 999])
SCHEDULERS = {kind: DDPMScheduler(prediction_type=kind) for kind in PREDICTION_TYPES}
SCHEDULER = SCHEDULERS["epsilon"]


@pytest.fixture
def batch():
    """x0, noise, x_t in float64, from which every prediction type follows exactly."""
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.rand(2, 6, 1, 4, 4, generator=generator, dtype=torch.float64) * 2 - 1
    a, s = coefficients(SCHEDULER, TIMESTEPS, x0)
    return x0, noise, a * x0 + s * noise


@pytest.mark.parametrize(("source", "target"), [*itertools.product(PREDICTION_TYPES, repeat=2)])
def test_a_conversion_gives_what_diffusers_would_train_on(source, target, batch):
    x0, noise, sample = batch
    given, wanted = (prediction_target(SCHEDULERS[kind], x0, noise, TIMESTEPS) for kind in (source, target))
    # alpha_bar is float32 in the scheduler; x0 from eps divides by a = 0.006 at the last timestep.
    tolerance = 1e-4 if source == "epsilon" else 1e-5
    converted = convert(given, sample, TIMESTEPS, SCHEDULER, source, target)
    torch.testing.assert_close(converted, wanted, atol=tolerance, rtol=0)


@pytest.mark.parametrize(("source", "target"), [*itertools.permutations(PREDICTION_TYPES, 2)])
def test_there_and_back_is_the_identity_for_any_prediction(source, target):
    sample, prediction = torch.randn(2, 6, 1, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    there = convert(prediction, sample, TIMESTEPS, SCHEDULER, source, target)
    back = convert(there, sample, TIMESTEPS, SCHEDULER, target, source)
    # float64 through factors up to (s / a)^2 = 2.5e4 and 1 / s = 100.
    torch.testing.assert_close(back, prediction, atol=1e-6, rtol=0)


def test_conversions_keep_the_order_of_errors():
    """Affine at every timestep with one factor a sample: PLACE's sort is the same in every space."""
    generator = torch.Generator().manual_seed(2)
    sample, student, teacher = torch.randn(3, 6, 1, 8, 8, generator=generator, dtype=torch.float64)
    order = (teacher - student).square().flatten(1).argsort()
    for space in ("v_prediction", "sample"):
        one, other = (convert(p, sample, TIMESTEPS, SCHEDULER, "epsilon", space) for p in (student, teacher))
        assert torch.equal((other - one).square().flatten(1).argsort(), order)


def test_x0_is_what_the_sampler_of_diffusers_estimates(batch):
    _, _, sample = batch
    prediction = torch.randn(sample.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for kind, scheduler in SCHEDULERS.items():
        estimate = convert(prediction, sample, TIMESTEPS, scheduler, kind, "sample")
        scheduler.set_timesteps(1000)
        for row, timestep in enumerate(TIMESTEPS):
            step = scheduler.step(prediction[row], timestep, sample[row], generator=torch.Generator())
            clipped = estimate[row].clamp(-1, 1)  # as this scheduler's config asks for
            torch.testing.assert_close(step.pred_original_sample, clipped, atol=1e-4, rtol=0, msg=kind)


def test_clipping_bounds_what_high_noise_amplifies(batch):
    _, noise, sample = batch
    off = noise + 0.06  # the error of a tiny student at t = 999 becomes 9 in x0
    free = convert(off, sample, TIMESTEPS, SCHEDULER, "epsilon", "v_prediction")
    held = convert(off, sample, TIMESTEPS, SCHEDULER, "epsilon", "v_prediction", threshold="clip")
    a, s = coefficients(SCHEDULER, TIMESTEPS, sample)
    x0_free, x0_held = ((a * sample - s * v) for v in (free, held))
    assert x0_free[-1].abs().max() > 5
    # float64, through s close to 0.01 at the first timestep.
    assert x0_held.abs().max() <= 1 + 1e-6
    inside = x0_free.abs() <= 1
    torch.testing.assert_close(held[inside], free[inside], atol=1e-4, rtol=0)


def test_the_dynamic_threshold_is_that_of_diffusers_without_shrinking():
    x0 = 3 * torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(4))
    shrunk = DDPMScheduler(thresholding=True, sample_max_value=1e9)._threshold_sample(x0)
    found = thresholded(x0, SCHEDULER, "dynamic")
    torch.testing.assert_close(found / found.abs().amax((1, 2, 3), keepdim=True), shrunk)
    kept = found == x0
    assert 0.98 < kept.float().mean() < 1 and (found.abs()[~kept] > 1).all()
    assert torch.equal(thresholded(x0 / 20, SCHEDULER, "dynamic"), x0 / 20)  # within the range nothing moves


def test_no_conversion_touches_nothing():
    wild = torch.full((6, 1, 2, 2), 40.0)
    assert convert(wild, wild, TIMESTEPS, SCHEDULER, "epsilon", "epsilon", threshold="clip") is wild


def test_an_unknown_type_is_refused():
    with pytest.raises(BadInputError, match="flow"):
        convert(torch.zeros(6, 1, 2, 2), torch.zeros(6, 1, 2, 2), TIMESTEPS, SCHEDULER, "epsilon", "flow")


@pytest.mark.parametrize("kind", ["min_snr", "snr_truncated", "angular"])
def test_weights_mean_the_same_in_every_space(kind):
    """A squared error weighs the same whichever space measures it, and as its paper has it in x0's."""
    generator = torch.Generator().manual_seed(5)
    sample, student, teacher = torch.randn(3, 6, 1, 8, 8, generator=generator, dtype=torch.float64)
    weighted = {}
    for space in PREDICTION_TYPES:
        one, other = (convert(p, sample, TIMESTEPS, SCHEDULER, "sample", space) for p in (student, teacher))
        weights = timestep_weights(kind, SCHEDULER, TIMESTEPS, space).double()
        weighted[space] = weights * (one - other).square().flatten(1).mean(1)
    # float32 alpha_bar: 1 - alpha_bar at t = 0 is 1e-4, known to 1e-3 of itself.
    for space in ("epsilon", "v_prediction"):
        torch.testing.assert_close(weighted[space], weighted["sample"], rtol=2e-3, atol=0)
    ratio = snr(SCHEDULER, TIMESTEPS)
    expected = {
        "min_snr": ratio.clamp(max=5),
        "snr_truncated": ratio.clamp(min=1),
        "angular": angular_speed(SCHEDULER)[TIMESTEPS] * (1 + ratio),
    }
    torch.testing.assert_close(timestep_weights(kind, SCHEDULER, TIMESTEPS, "sample"), expected[kind])


def test_angular_weights_make_timesteps_uniform_in_the_angle():
    """The weighted mean over timesteps of any function of the angle is its plain mean over the angle."""
    angle = SCHEDULER.alphas_cumprod.double().sqrt().acos()
    weights = timestep_weights("angular", SCHEDULER, torch.arange(1000), "v_prediction").double()
    assert weights.mean().item() == pytest.approx(1)
    for function in (torch.cos, torch.square):
        first, last = angle[0], angle[-1]
        grid = torch.linspace(first.item(), last.item(), 100_001, dtype=torch.float64)
        # A sum of 1,000 steps for an integral.
        assert (weights * function(angle)).mean().item() == pytest.approx(function(grid).mean().item(), rel=5e-3)


def test_a_ddim_step_adds_the_v_error_times_the_sine_of_its_angle():
    scheduler = DDIMScheduler.from_config(SCHEDULERS["v_prediction"].config, clip_sample=False, set_alpha_to_one=False)
    scheduler.set_timesteps(50)
    sample, v, error = torch.randn(3, 1, 1, 4, 4, generator=torch.Generator().manual_seed(6))
    for place in (0, 20, 40):
        timestep, after = scheduler.timesteps[place], scheduler.timesteps[place + 1]
        exact, off = (scheduler.step(value, timestep, sample).prev_sample for value in (v, v + error))
        start, end = (scheduler.alphas_cumprod[t].sqrt().acos() for t in (timestep, after))
        torch.testing.assert_close((off - exact), error * torch.sin(end - start), atol=1e-5, rtol=1e-3)


def test_uniform_weights_are_one():
    assert torch.equal(timestep_weights("uniform", SCHEDULER, TIMESTEPS, "epsilon"), torch.ones(6))
