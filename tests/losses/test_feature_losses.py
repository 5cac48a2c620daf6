"""Feature losses: closed forms, what they leave out, and the adapters in front of them."""

import numpy as np
import pytest
import torch

from edgediff.errors import BadInputError
from edgediff.losses import LOSSES, attention, feature, masked_feature
from edgediff.losses.adapters import Adapters

FEATURE = {name: loss.function for name, loss in LOSSES.items() if loss.kind == "feature"}


@pytest.mark.parametrize("name", FEATURE)
def test_one_value_a_sample_and_none_for_the_teacher(name, features):
    student, teacher = features()
    for maps in (*student, *teacher):
        maps.requires_grad_()
    loss = FEATURE[name](student, teacher)
    assert loss.shape == (3,) and (loss > 0).all()
    loss.sum().backward()
    assert all(maps.grad.abs().sum() > 0 for maps in student)
    assert all(maps.grad is None for maps in teacher)
    assert FEATURE[name]([maps.detach() for maps in teacher], teacher).tolist() == [0, 0, 0]


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_feature_is_the_squared_error_of_all_maps(reduction, features):
    student, teacher = features()
    squares = [((s - t).numpy() ** 2).reshape(3, -1) for s, t in zip(student, teacher, strict=True)]
    expected = sum(getattr(s, reduction)(1) for s in squares)
    np.testing.assert_allclose(feature(student, teacher, reduction=reduction).numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_attention_adds_up_the_distances_of_normalised_maps(reduction, features):
    student, teacher = features(student_widths=(2, 3))
    expected = []
    for s, t in zip(student, teacher, strict=True):
        one, other = ((maps.numpy() ** 2).mean(1).reshape(3, -1) for maps in (s, t))
        one, other = (maps / np.sqrt((maps**2).sum(1, keepdims=True)) for maps in (one, other))
        expected.append(((one - other) ** 2).sum(1) * (one.shape[1] if reduction == "sum" else 1))
    expected = np.sum(expected, axis=0)
    np.testing.assert_allclose(attention(student, teacher, reduction=reduction).numpy(), expected, rtol=1e-9)


def test_attention_is_blind_to_scale_and_bounded_by_orthogonal_maps():
    left, right = torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 4)
    left[..., 0], right[..., 1] = 3, 0.1
    assert attention([7 * left], [left]).item() == pytest.approx(0, abs=1e-6)
    assert attention([left], [right], reduction="mean").item() == pytest.approx(2, rel=1e-6)
    assert attention([left], [right], reduction="sum").item() == pytest.approx(2 * 16, rel=1e-6)


@pytest.mark.parametrize("name", FEATURE)
@pytest.mark.parametrize("value", [0.0, 0.3])
def test_constant_maps_are_finite(name, value, features):
    _, teacher = features(dtype=torch.float32)
    for target in (teacher, [torch.zeros_like(maps) for maps in teacher]):
        student = [torch.full_like(maps, value).requires_grad_() for maps in target]
        loss = FEATURE[name](student, target)
        loss.sum().backward()
        assert torch.isfinite(loss).all()
        assert all(torch.isfinite(maps.grad).all() for maps in student)


def test_a_massive_activation_is_left_out(features):
    """In the teacher or in the student: no loss and no gradient from it, and the others as without it."""
    student, teacher = features()
    only = {"threshold": 4.0}  # none of the 192 normal elements is so far out; alone in the map, 1e3 is 13.8 out
    for spoiled in (teacher, student):
        spoiled[0][1, 2, 3, 4] = 1e3
        student[0].requires_grad_()
        loss = masked_feature(student[:1], teacher[:1], **only)
        (gradient,) = torch.autograd.grad(loss.sum(), student[0])
        assert gradient[1, 2, 3, 4] == 0
        others = (student[0] - teacher[0]).detach()[1].square()
        others[2, 3, 4] = 0
        torch.testing.assert_close(loss[1].detach(), others.sum())
        mean = masked_feature(student[:1], teacher[:1], reduction="mean", **only)[1]
        torch.testing.assert_close(mean.detach(), others.sum() / (4 * 48 - 1))
        student[0] = student[0].detach()
        spoiled[0][1, 2, 3, 4] = 0


def test_mask_agrees_with_numpy(features):
    student, teacher = features()
    expected = np.zeros(3)
    for s, t in zip(student, teacher, strict=True):
        for b in range(3):
            one, other = s[b].numpy(), t[b].numpy()
            counts = np.all([np.abs(maps - maps.mean()) <= 1.5 * maps.std() for maps in (one, other)], axis=0)
            assert 0.6 < counts.mean() < 0.95
            expected[b] += ((one - other) ** 2)[counts].mean()
    actual = masked_feature(student, teacher, reduction="mean", threshold=1.5)
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-12)
    everything = masked_feature(student, teacher, threshold=100.0)
    torch.testing.assert_close(everything, feature(student, teacher))


@pytest.mark.parametrize("name", FEATURE)
def test_half_precision_and_autocast_compute_in_float32(name, features):
    student, teacher = ([m.to(torch.bfloat16) for m in maps] for maps in features(dtype=torch.float32))
    expected = FEATURE[name]([m.float() for m in student], [m.float() for m in teacher])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = FEATURE[name](student, teacher)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("name", FEATURE)
def test_bad_input_is_refused(name, features):
    student, teacher = features()
    with pytest.raises(BadInputError, match="at least one: 2 and 1"):
        FEATURE[name](student, teacher[:1])
    with pytest.raises(BadInputError, match="at least one: 0 and 0"):
        FEATURE[name]([], [])
    with pytest.raises(BadInputError, match="shapes differ"):
        FEATURE[name](student, teacher[::-1])
    with pytest.raises(BadInputError, match="unknown reduction: men"):
        FEATURE[name](student, teacher, reduction="men")


def test_adapters_reach_the_teachers_widths_and_leave_equal_ones_alone():
    adapters = Adapters((2, 4, 5), (3, 4, 2))
    student = [torch.randn(2, width, 4, 4) for width in (2, 4, 5)]
    adapted = adapters(student)
    assert [maps.shape[1] for maps in adapted] == [3, 4, 2]
    assert adapted[1] is student[1]
    assert len(list(adapters.parameters())) == 4  # weight and bias of two convolutions
    with pytest.raises(BadInputError, match="feature points: 1 and 2"):
        Adapters((2,), (3, 4))


def test_a_new_adapter_keeps_the_norm_of_features_and_gradients():
    (point,) = Adapters((8,), (32,)).points
    maps = torch.randn(2, 8, 3, 3, requires_grad=True)
    out = point(maps)
    torch.testing.assert_close(out.norm(dim=1), maps.norm(dim=1))
    (gradient,) = torch.autograd.grad(out, maps, out)
    torch.testing.assert_close(gradient, maps.detach())  # the adjoint of an isometry is its inverse


def test_adapters_learn_to_map_features():
    torch.manual_seed(0)
    student = [torch.randn(16, 3, 4, 4)]
    teacher = [torch.einsum("oc,bchw->bohw", torch.randn(5, 3), student[0])]
    adapters = Adapters((3,), (5,))
    optimizer = torch.optim.Adam(adapters.parameters(), lr=0.05)
    first = feature(adapters(student), teacher, reduction="mean").mean().item()
    for _ in range(200):
        optimizer.zero_grad()
        loss = feature(adapters(student), teacher, reduction="mean").mean()
        loss.backward()
        optimizer.step()
    assert loss.item() < 1e-3 * first
