"""Drawing and scoring under one profile: which images count as noise, and what the reference has to say in it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel

from edgediff import data
from edgediff.data.images import ImageArray, to_bytes
from edgediff.diffusion.parameterisation import coefficients
from edgediff.families.unet2d import UNet2D
from edgediff.metrics import checks
from edgediff.metrics.divergence import noise_level, noise_limit
from edgediff.metrics.features import efficientnet_lite0
from edgediff.model_folder import Loaded
from edgediff.quality import draw, floor_row, model_row, profile, real_images
from edgediff.recipe import DataConfig
from edgediff.samples import Samples

RAMP = torch.linspace(-1, 1, 28).expand(1, 28, 28)


class Draws:
    """A denoiser whose sampling ends, of every four images, in NaN, in noise, and twice in a ramp."""

    backend, device, precision = "known", "cpu", "fp32"

    def __init__(self, scheduler):
        self.scheduler = scheduler

    def __call__(self, sample, timestep):
        a, s = coefficients(self.scheduler, timestep, sample)
        epsilon = (sample - a * RAMP) / s
        epsilon[0::4], epsilon[1::4] = float("nan"), 0.0
        return epsilon


@pytest.fixture(scope="module")
def config(small_recipe):
    return small_recipe(evaluate={"clip_sample": False}).evaluate


@pytest.fixture(scope="module")
def extractor():
    return efficientnet_lite0()


@pytest.fixture(scope="module")
def photographs(photos, small_recipe):
    settings = small_recipe(data={"name": str(photos)}).data
    return [data.load(settings, split, shape=(1, 28, 28)) for split in ("test", "train")]


@pytest.fixture(scope="module")
def model(small_teacher):
    network = UNet2DModel.from_config(UNet2DModel.load_config(Path(small_teacher) / "unet"))
    return Loaded(network, DDPMScheduler(), UNet2D(), "")


@pytest.fixture(scope="module")
def drawn(model, photographs, config, quiet):
    reference = Samples(photographs[0], lambda count: {})
    return draw(Draws(model.scheduler), model, config, quiet, "student", reference)


def test_images_that_are_not_finite_are_known_and_still_saved(drawn, config):
    assert drawn.pixels.shape == (config.num_images, 1, 28, 28) and drawn.pixels.dtype == np.uint8
    assert drawn.finite.tolist() == [False, True, True, True] * 2
    ramp = ((RAMP + 1) * 127.5).round().numpy()
    # DDIM ends at the first timestep of its schedule, where x0 carries a hundredth of the noise.
    assert np.abs(drawn.pixels[2].astype(float) - ramp).max() < 8


def test_noise_and_images_that_are_not_finite_are_the_noise_share(drawn, photographs, extractor, config, quiet, model):
    real = real_images(*photographs, extractor, config.num_images, quiet)
    reference = photographs[0].batch(torch.arange(40))
    assert (
        profile(real, extractor, config, model, DataConfig()).noise_limit == noise_limit(noise_level(reference)) >= 0.5
    )
    assert floor_row(real).noise_share == 0
    row = model_row("student", drawn, real, extractor)
    assert row.noise_share == 0.5
    assert (
        row.diverged_share > 0.25
    )  # all pixels that are not finite, and most of the noise, which is 157 times as strong


def test_more_images_than_the_reference_has(photographs, extractor, config, quiet, model, drawn):
    """Every estimate is of as many of one side as of the other; the profile says how many."""
    test, training = photographs
    pixels = to_bytes(test.batch(torch.arange(8)))
    few = ImageArray("few", pixels[:5], np.zeros(5, np.uint8), "0")
    real = real_images(few, training, extractor, config.num_images, quiet)
    assert profile(real, extractor, config, model, DataConfig()).kid_subset_size == 4 < config.num_images
    row = model_row("student", replace(drawn, pixels=pixels, finite=np.ones(8, bool)), real, extractor)
    assert np.isfinite([row.kid_mean, row.kid_std, row.frechet_distance]).all()
    # Five of these eight are looked at, from the first to the last; of all five of the reference itself all are inside.
    assert 0 < row.precision <= 1 and 0 < row.recall <= 1
    same = model_row("student", replace(drawn, pixels=pixels[:5], finite=np.ones(5, bool)), real, extractor)
    assert (same.precision, same.recall) == (1, 1)


def test_estimates_of_kid_differ_where_both_sides_are_of_one_size(photographs, extractor, config, quiet, drawn):
    """Were each of all images, the gate would allow for no deviation."""
    test, training = photographs
    pixels = to_bytes(test.batch(torch.arange(16)))
    real = real_images(ImageArray("few", pixels[:8], np.zeros(8, np.uint8), "0"), training, extractor, 8, quiet)
    row = model_row("student", replace(drawn, pixels=pixels[8:]), real, extractor)
    assert row.kid_std > 1e-3


def test_images_are_drawn_alike_however_many_at_once(model, photographs, config, quiet):
    reference = Samples(photographs[0], lambda count: {})
    one, other = (
        draw(Draws(model.scheduler), model, config.model_copy(update={"batch_size": size}), quiet, "x", reference)
        for size in (4, 8)
    )
    assert np.array_equal(one.pixels, other.pixels) and one.diverged_share == other.diverged_share
    assert one.finite.tolist() == other.finite.tolist()


def test_scores_do_not_hang_on_how_many_are_scored_at_once(photographs, extractor, config, quiet, drawn, monkeypatch):
    real = real_images(*photographs, extractor, config.num_images, quiet)
    pixels = to_bytes(photographs[0].batch(torch.arange(16)))
    one, teacher = replace(drawn, pixels=pixels[:8]), replace(drawn, pixels=pixels[8:])
    together = model_row("student", one, real, extractor, teacher)
    monkeypatch.setattr(checks, "MOST_AT_ONCE", 3)
    assert [len(batch) for batch in one.batches()] == [3, 3, 2] and [len(batch) for batch in one.batches(4)] == [3, 1]
    apart = model_row("student", one, real, extractor, teacher)
    assert apart.psnr_to_teacher == pytest.approx(together.psnr_to_teacher, rel=1e-12)
    assert apart.ssim_to_teacher == pytest.approx(together.ssim_to_teacher, rel=1e-12)
    assert apart.frechet_distance == pytest.approx(together.frechet_distance, rel=1e-3)
    assert apart.noise_share == together.noise_share


def test_every_image_is_drawn_under_the_conditioning_of_its_seed(model, photographs, config, quiet):
    """Also where a batch is the last and shorter, and where there are more images than the reference has."""
    told = []

    class Told(Draws):
        def __call__(self, sample, timestep, place):
            told.append(place.tolist())
            return super().__call__(sample, timestep)

    class Reference:
        unconditional = None

        def __len__(self):
            return 6

        def conditioning(self, places):
            return {"place": places}

    asked = config.model_copy(update={"batch_size": 3, "first_seed": 4, "num_inference_steps": 1})
    draw(Told(model.scheduler), model, asked, quiet, "x", Reference())
    assert told == [[4, 5, 0], [1, 2, 3], [4, 5]]


def test_images_too_small_for_a_window_have_no_structural_similarity(photographs, extractor, config, quiet, drawn):
    real = real_images(*photographs, extractor, config.num_images, quiet)
    small = replace(drawn, pixels=to_bytes(photographs[0].batch(torch.arange(8))[..., 10:18, 10:18]))
    row = model_row("student", small, real, extractor, small)
    assert row.ssim_to_teacher is None and row.psnr_to_teacher == 100


def test_a_reference_of_noise_leaves_the_share_undefined(drawn, extractor, config, quiet, model):
    static = np.random.default_rng(0).integers(0, 256, (20, 1, 28, 28), dtype=np.uint8)
    noise = ImageArray("static", static, np.zeros(20, np.uint8), "0")
    real = real_images(noise, noise, extractor, config.num_images, quiet)
    assert profile(real, extractor, config, model, DataConfig()).noise_limit is None
    assert floor_row(real).noise_share is None and model_row("student", drawn, real, extractor).noise_share is None
