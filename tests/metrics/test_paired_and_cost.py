"""PSNR and SSIM against closed forms and a slow loop; MACs counted by hand; latency percentiles."""

import math

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from torch import nn

from edgediff.errors import BadInputError, StageFailedError
from edgediff.metrics.cost import macs, parameter_bytes, parameter_count
from edgediff.metrics.paired import psnr, ssim
from edgediff.metrics.percentiles import latency_summary


def images(count=2, channels=3, side=16, seed=0):
    return torch.rand((count, channels, side, side), generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_psnr_of_a_constant_difference():
    a = torch.zeros(2, 3, 8, 8)
    b = a.clone()
    b[0] += 0.2  # 10 log10(2² / 0.2²) = 20 dB
    b[1] -= 0.02  # 40 dB
    np.testing.assert_allclose(psnr(a, b), [20, 40], rtol=1e-6)


def test_equal_images():
    a = images()
    assert np.isposinf(psnr(a, a)).all()
    np.testing.assert_allclose(ssim(a, a), [1, 1], rtol=0, atol=1e-12)


def test_ssim_agrees_with_a_slow_loop():
    a, b = images(1, 2, 14), images(1, 2, 14, seed=1)
    x, y = a.double().numpy()[0], b.double().numpy()[0]
    window = np.array([[math.exp(-((i - 5) ** 2 + (j - 5) ** 2) / 4.5) for j in range(11)] for i in range(11)])
    window /= window.sum()
    values = []
    for c in range(2):
        for i in range(4):
            for j in range(4):
                p, q = x[c, i : i + 11, j : j + 11], y[c, i : i + 11, j : j + 11]
                mp, mq = (window * p).sum(), (window * q).sum()
                vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
                cov = (window * (p - mp) * (q - mq)).sum()
                c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
                values.append((2 * mp * mq + c1) * (2 * cov + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2)))
    np.testing.assert_allclose(ssim(a, b), [np.mean(values)], rtol=1e-10)


def test_ssim_of_constant_images_is_the_luminance_term():
    a, b = torch.full((1, 1, 11, 11), 0.5), torch.full((1, 1, 11, 11), -0.5)
    c1 = 0.02**2
    np.testing.assert_allclose(ssim(a, b), [(-0.5 + c1) / (0.5 + c1)], rtol=1e-9)


def test_pairs_are_independent_of_their_batch_and_ordered_by_noise():
    a = images(1).expand(3, -1, -1, -1) * 0.5
    b = a + torch.tensor([0.01, 0.1, 0.4]).view(3, 1, 1, 1) * images(1, seed=1)
    for metric in (psnr, ssim):
        together = metric(a, b)
        assert together.shape == (3,)
        assert (np.diff(together) < 0).all()
        np.testing.assert_allclose(together, [metric(a[i : i + 1], b[i : i + 1])[0] for i in range(3)], rtol=1e-12)
        np.testing.assert_allclose(together, metric(b, a), rtol=1e-12)


def test_bad_pairs_are_refused():
    a = images()
    for metric in (psnr, ssim):
        with pytest.raises(BadInputError, match="shapes differ"):
            metric(a, a[:1])
        with pytest.raises(BadInputError, match="largest magnitude"):
            metric(a, a * 3)
        broken = a.clone()
        broken[1, 0, 0, 0] = torch.nan
        with pytest.raises(StageFailedError, match="1 of 2 images"):
            metric(a, broken)
    with pytest.raises(BadInputError, match="too small for SSIM"):
        ssim(a[..., :10], a[..., :10])


def test_parameters_count_shared_ones_once():
    layer = nn.Linear(3, 5)  # 15 + 5
    shared = nn.Sequential(layer, nn.Linear(5, 3, bias=False), layer)
    assert parameter_count(shared) == 20 + 15
    assert parameter_bytes(shared) == 35 * 4
    assert parameter_bytes(shared.bfloat16()) == 35 * 2


def test_macs_of_convolutions_by_hand():
    x = torch.zeros(2, 4, 8, 8)
    assert macs(nn.Conv2d(4, 6, 3, padding=1), {"input": x}) == 2 * 6 * 8 * 8 * 4 * 9
    assert macs(nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=4), {"input": x}) == 2 * 4 * 4 * 4 * 9
    assert macs(nn.ConvTranspose2d(4, 6, 2, stride=2), {"input": x}) == 2 * 4 * 8 * 8 * 6 * 4


def test_macs_of_linears_by_hand():
    for bias in (True, False):
        assert macs(nn.Linear(7, 5, bias=bias), {"input": torch.zeros(2, 3, 7)}) == 2 * 3 * 7 * 5


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("processor", [AttnProcessor, AttnProcessor2_0])  # matrix products, and the fused kernel
def test_macs_of_attention_by_hand(processor, device):
    tokens, context, width, heads, head_dim = 10, 6, 24, 3, 8
    attention = Attention(width, cross_attention_dim=16, heads=heads, dim_head=head_dim, processor=processor())
    inputs = {"hidden_states": torch.zeros(2, tokens, width), "encoder_hidden_states": torch.zeros(2, context, 16)}
    inner = heads * head_dim
    projections = tokens * width * inner + 2 * context * 16 * inner + tokens * inner * width
    scores_and_sum = 2 * heads * tokens * context * head_dim
    counted = macs(attention.to(device), {name: value.to(device) for name, value in inputs.items()})
    assert counted == 2 * (projections + scores_and_sum)


def test_counting_leaves_the_module_as_it_was():
    module = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Dropout())
    macs(module, {"input": torch.zeros(1, 3, 4, 4)})
    assert module.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in module.parameters())


def test_latency_summary():
    summary = latency_summary([i / 1000 for i in range(101)])  # 0..100 ms: the p-th percentile is p ms
    assert summary == pytest.approx(
        {
            "latency_p50_ms": 50,
            "latency_p90_ms": 90,
            "latency_p99_ms": 99,
            "latency_mean_ms": 50,
            "latency_min_ms": 0,
            "count": 101,
        }
    )
    assert latency_summary([0.002])["latency_p99_ms"] == pytest.approx(2)


@pytest.mark.parametrize("seconds", [[], [0.1, math.nan], [0.1, -0.1]])
def test_latency_summary_refuses_what_is_no_duration(seconds):
    with pytest.raises(BadInputError):
        latency_summary(seconds)
