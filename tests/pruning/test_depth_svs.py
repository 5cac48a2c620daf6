"""Singular value scaling: the published rule, the one that keeps norms, and what neither touches."""

import pytest
import torch
from depth_models import dit
from torch import nn

from edgediff.pruning import refine
from edgediff.pruning.svs import scaled


def weight(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 3, 3, 3)])
def test_singular_values_become_their_roots_and_vectors_stay(shape):
    before = weight(*shape)
    after = scaled(before)
    assert after.shape == before.shape
    sigma = torch.linalg.svdvals(before.flatten(1))
    # float32: an SVD and a product carry some 1e-6 of the largest value
    torch.testing.assert_close(torch.linalg.svdvals(after.flatten(1)), sigma.sqrt(), rtol=1e-4, atol=1e-5)
    # Matrices with the same singular vectors, in the same order, have a product W' Wᵀ that is symmetric and positive.
    product = after.flatten(1) @ before.flatten(1).T
    torch.testing.assert_close(product, product.T, rtol=1e-4, atol=1e-4)
    assert torch.linalg.eigvalsh(product).min() > -1e-4


def test_the_norm_is_kept_where_asked():
    before = weight(8, 8)
    after = scaled(before, keep_norm=True)
    assert after.norm().item() == pytest.approx(before.norm().item(), rel=1e-5)
    spreads = [(sigma[0] / sigma[-1]).item() for sigma in map(torch.linalg.svdvals, (before, after))]
    assert spreads[1] == pytest.approx(spreads[0] ** 0.5, rel=1e-3)


def test_a_flat_spectrum_changes_nothing():
    flat = 3 * torch.linalg.qr(weight(7, 5)).Q
    torch.testing.assert_close(scaled(flat, keep_norm=True), flat, rtol=1e-5, atol=1e-5)
    assert torch.equal(scaled(torch.zeros(3, 4), keep_norm=True), torch.zeros(3, 4))


def test_the_published_rule_scales_biases_and_sets_norms_back():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(4, 3), nn.Embedding(3, 2))
    with torch.no_grad():
        model[1].weight.fill_(5), model[1].bias.fill_(5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    refine(model, "svs")
    for layer in ("0", "3"):
        torch.testing.assert_close(model.state_dict()[f"{layer}.weight"], scaled(before[f"{layer}.weight"]))
        bias = before[f"{layer}.bias"]
        torch.testing.assert_close(model.state_dict()[f"{layer}.bias"], bias / bias.norm().sqrt())
    assert (model[1].weight == 1).all() and (model[1].bias == 0).all()
    assert torch.equal(model[4].weight, before["4.weight"])


def test_the_rule_that_keeps_norms_touches_weights_alone():
    model = dit()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    refine(model, "svs_norm")
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    assert changed == linear
    for name in linear:
        assert model.state_dict()[name].norm().item() == pytest.approx(before[name].norm().item(), rel=1e-4)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_half_precision_weights_stay_in_half_precision():
    assert scaled(weight(4, 4).bfloat16()).dtype == torch.bfloat16
