"""Noise level and limit: a float64 NumPy reference, closed forms, and Fashion-MNIST against noise of several kinds."""

import numpy as np
import pytest
import torch

from edgediff.data import fashion_mnist
from edgediff.data.images import from_bytes
from edgediff.errors import BadInputError, StageFailedError
from edgediff.metrics.divergence import FAINT, MAD_TO_STD, noise_level, noise_limit


@pytest.fixture(scope="module")
def photographs():
    return from_bytes(fashion_mnist.load("test", fashion_mnist.packaged_folder()).pixels.copy())


@pytest.fixture(scope="module")
def limit(photographs):
    return noise_limit(noise_level(photographs))


def white(count, channels=1, side=28, sigma=1.0, seed=0):
    """Gaussian noise as it would be saved: clamped to [-1, 1], rounded to bytes."""
    drawn = sigma * torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(seed))
    return ((drawn.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


def reference(image):
    """One image (C, H, W), written from the definition with loops."""
    channels, height, width = image.shape
    details = [
        abs(image[c, y + 1, x + 1] - image[c, y + 1, x] - image[c, y, x + 1] + image[c, y, x]) / 2
        for c in range(channels)
        for y in range(height - 1)
        for x in range(width - 1)
    ]
    median = sorted(details)[(len(details) - 1) // 2]
    variance = np.mean([(image[c] - image[c].mean()) ** 2 for c in range(channels)])
    return median / MAD_TO_STD / np.sqrt(variance + FAINT**2)


@pytest.mark.parametrize("shape", [(1, 5, 7), (3, 6, 4)])
def test_agrees_with_the_definition_in_float64(shape):
    images = np.random.default_rng(0).uniform(-1, 1, (4, *shape))
    expected = [reference(image) for image in images]
    # Sums of at most 72 terms of order 1 in float64, in another order: far below 1e-12.
    np.testing.assert_allclose(noise_level(torch.from_numpy(images)), expected, rtol=1e-12)


def test_smooth_images_have_no_noise():
    ramp = torch.linspace(-1, 1, 16).expand(1, 1, 16, 16)
    edges = torch.zeros(1, 1, 16, 16)
    edges[..., 4:12, 4:12] = 1
    images = torch.cat([ramp, ramp.mT, edges, torch.zeros(1, 1, 16, 16)])
    # A ramp's second difference is 0 up to the rounding of float32 coordinates, 6e-8.
    np.testing.assert_allclose(noise_level(images), 0, atol=1e-6)


@pytest.mark.parametrize("sigma", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("channels", [1, 3])
def test_white_noise_has_a_level_of_one_at_any_amplitude(sigma, channels):
    levels = noise_level(white(500, channels, sigma=sigma))
    # The median of 729 correlated values has a standard error of about 5 %; clamping makes heavier ends (1.14 at 3).
    assert levels.min() > 0.8 and levels.max() < 1.4
    assert levels.mean() == pytest.approx(1, abs=0.15)


def test_brightness_does_not_matter_and_contrast_only_where_there_is_hardly_any():
    image = white(20, sigma=0.1).double()
    variance = (image - image.mean(dim=(1, 2, 3), keepdim=True)).square().mean(dim=(1, 2, 3)).numpy()
    expected = noise_level(image) * 0.5 * np.sqrt((variance + FAINT**2) / (variance / 4 + FAINT**2))
    np.testing.assert_allclose(noise_level(image / 2), expected, rtol=1e-12)  # rounding of float64
    np.testing.assert_allclose(noise_level(image + 0.1), noise_level(image), rtol=1e-12)


def test_a_flat_photograph_with_a_faint_sensor_is_no_noise():
    assert noise_level(white(20, sigma=0.01)).max() < 0.3


def test_no_real_image_is_beyond_the_limit_and_all_noise_is(photographs, limit):
    training = from_bytes(fashion_mnist.load("train", fashion_mnist.packaged_folder()).pixels.copy())
    assert noise_level(photographs).max() < limit < 0.8
    assert not (noise_level(training) > limit).any()
    for sigma in (0.3, 1.0, 3.0):
        assert (noise_level(white(500, sigma=sigma)) > limit).all()


def test_pictures_under_growing_noise_pass_the_limit_one_after_the_other(photographs, limit):
    pictures, noise = photographs[:500], torch.randn(500, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    shares = [
        (noise_level(((1 - share) * pictures + share * noise).clamp(-1, 1)) > limit).mean()
        for share in (0.0, 0.2, 0.5, 0.7, 1.0)
    ]
    assert shares == sorted(shares)
    assert shares[1] < 0.05 and shares[2] > 0.5 and shares[3] > 0.98


def test_few_reference_images_do_not_make_real_ones_noise(photographs):
    few = noise_limit(noise_level(photographs[:20]))
    assert few >= 0.5 and (noise_level(photographs) > few).mean() < 1e-3


def test_a_reference_that_is_noise_itself_gives_no_limit():
    assert noise_limit(noise_level(white(50))) is None
    assert noise_limit([0.2, 0.6]) == 0.66


def test_bad_images_are_refused():
    with pytest.raises(BadInputError, match="too small to tell noise"):
        noise_level(torch.zeros(1, 1, 1, 8))
    with pytest.raises(BadInputError, match=r"must be in \[-1, 1\]"):
        noise_level(torch.full((1, 1, 4, 4), 2.0))
    with pytest.raises(StageFailedError, match="1 of 2 images are not finite"):
        noise_level(torch.tensor([0.0, float("nan")]).view(2, 1, 1, 1).expand(2, 1, 4, 4))
