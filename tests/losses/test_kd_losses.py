"""The losses against closed forms, numpy.polyfit, and a plain-loop NumPy implementation of the same mathematics."""

import numpy as np
import pytest
import torch

from edgediff.errors import BadInputError
from edgediff.losses import KD, diffusion, fit, lift, output, place

EPS = 1e-7


def maps(shape=(3, 2, 6, 8), dtype=torch.float64, seed=0):
    """A correlated pair of predictions, like a half-trained student and its teacher."""
    generator = torch.Generator().manual_seed(seed)
    teacher = torch.randn(shape, generator=generator, dtype=dtype)
    student = 0.8 * teacher + 0.1 + 0.3 * torch.randn(shape, generator=generator, dtype=dtype)
    return student, teacher


def place_by_loops(student, teacher, group_size, reduction):
    """Independent reference: one group at a time, no tensors, no masks."""
    student, teacher = student.numpy(), teacher.numpy()
    batch, channels = student.shape[:2]
    coarse = fine = 0.0
    slopes, intercepts = [], []
    for b in range(batch):
        for c in range(channels):
            s_map, t_map = student[b, c].ravel(), teacher[b, c].ravel()
            order = np.argsort((t_map - s_map) ** 2)
            for start in range(0, len(order), group_size):
                members = order[start : start + group_size]
                s, t = s_map[members], t_map[members]
                slope = np.mean((s - s.mean()) * (t - t.mean())) / (np.mean((s - s.mean()) ** 2) + EPS)
                intercept = t.mean() - slope * s.mean()
                coarse += len(members) * (abs(slope - 1) + abs(intercept))
                fine += np.sum((slope * s + intercept - t) ** 2)
                slopes.append(slope)
                intercepts.append(intercept)
    scale = batch if reduction == "sum" else student.size
    weight = 1 - min(1, np.mean(np.abs(np.array(slopes) - 1)) + np.mean(np.abs(intercepts)))
    coarse, fine = coarse / scale, fine / scale
    return coarse + weight * fine, coarse, fine, weight, np.mean(slopes), np.mean(intercepts)


def test_fit_agrees_with_polyfit():
    student, teacher = maps((5, 40))
    slope, intercept = fit(student, teacher, eps=0.0)
    expected = np.array([np.polyfit(s, t, 1) for s, t in zip(student.numpy(), teacher.numpy(), strict=True)])
    np.testing.assert_allclose(slope.numpy(), expected[:, 0], rtol=0, atol=1e-9)
    np.testing.assert_allclose(intercept.numpy(), expected[:, 1], rtol=0, atol=1e-9)


def test_fit_counts_only_masked_elements():
    student, teacher = maps((4, 10))
    mask = torch.ones(10, dtype=torch.float64)
    mask[7:] = 0
    for masked, short in zip(fit(student, teacher, mask=mask), fit(student[:, :7], teacher[:, :7]), strict=True):
        torch.testing.assert_close(masked, short, rtol=1e-12, atol=1e-12)


def test_fit_keeps_its_digits_far_from_zero():
    # Raw moments E[ST] - E[S]E[T] lose every digit in float32 at an offset of 1000; centred ones keep about four.
    student, teacher = maps((2, 64), dtype=torch.float32)
    slope, _ = fit(student + 1000, teacher + 1000)
    torch.testing.assert_close(slope, fit(student, teacher)[0], rtol=1e-3, atol=0)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("group_size", [1, 5, 16, 47, 48, 100])  # 48 positions: dividing, ragged, whole, beyond
def test_place_agrees_with_plain_loops(group_size, reduction):
    student, teacher = maps()
    terms = place(student, teacher, group_size=group_size, reduction=reduction)
    # float64 on both sides: only the order of additions differs
    np.testing.assert_allclose(
        [t.item() for t in terms], place_by_loops(student, teacher, group_size, reduction), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("group_size", [4, 5, 48])
def test_perfect_student(group_size):
    _, teacher = maps()
    terms = place(teacher.clone(), teacher, group_size=group_size)
    # The eps in the variance moves the slope by eps / var, about 1e-7 for unit variance and more in a narrow group.
    assert terms.total.item() < 48 * 2 * 1e-4
    assert terms.fine_weight.item() == pytest.approx(1, abs=1e-4)
    assert terms.slope.item() == pytest.approx(1, abs=1e-4)
    assert terms.intercept.item() == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize(("a", "b"), [(2.0, 0.5), (-0.7, 0.0), (1.0, -3.0)])
def test_affine_student_is_undone_by_the_fit(a, b):
    _, teacher = maps()
    terms = lift(a * teacher + b, teacher)
    assert terms.slope.item() == pytest.approx(1 / a, rel=1e-6)
    assert terms.intercept.item() == pytest.approx(-b / a, abs=1e-6)
    assert terms.fine.item() < 1e-9
    assert terms.coarse.item() == pytest.approx(2 * 48 * (abs(1 / a - 1) + abs(b / a)), rel=1e-5)


def test_permuting_positions_changes_nothing():
    student, teacher = maps()
    order = torch.randperm(48, generator=torch.Generator().manual_seed(1))
    shuffled = [m.flatten(2)[..., order].reshape(m.shape) for m in (student, teacher)]
    for before, after in zip(place(student, teacher, group_size=5), place(*shuffled, group_size=5), strict=True):
        torch.testing.assert_close(before, after, rtol=1e-12, atol=1e-12)


def test_one_group_is_lift():
    student, teacher = maps()
    for group_size in (48, 1000):
        assert place(student, teacher, group_size=group_size) == lift(student, teacher)


def test_reductions_differ_by_the_number_of_elements():
    student, teacher = maps()
    for loss in KD.values():
        if loss is None:
            continue
        summed = loss(student, teacher, group_size=5, reduction="sum")
        mean = loss(student, teacher, group_size=5, reduction="mean")
        for name in ("total", "coarse", "fine"):
            torch.testing.assert_close(getattr(summed, name), getattr(mean, name) * 2 * 48)
        assert summed.fine_weight == mean.fine_weight


@pytest.mark.parametrize("group_size", [4, 5, 48])
def test_gradient_of_the_coarse_term(group_size):
    student, teacher = maps((2, 2, 3, 4))
    assert torch.autograd.gradcheck(
        lambda s: place(s, teacher, group_size=group_size).coarse, student.requires_grad_(), eps=1e-7, atol=1e-4
    )


@pytest.mark.parametrize("group_size", [4, 5, 48])
def test_fine_gradient_treats_fit_and_weight_as_constants(group_size):
    student, teacher = maps()
    student.requires_grad_()
    terms = place(student, teacher, group_size=group_size)
    (actual,) = torch.autograd.grad(terms.fine, student, retain_graph=True)
    (total,) = torch.autograd.grad(terms.total, student, retain_graph=True)
    (coarse,) = torch.autograd.grad(terms.coarse, student)
    torch.testing.assert_close(total, coarse + terms.fine_weight * actual)  # nothing through the weight
    # d/dS of (slope·S + intercept - T)² with both constant is 2·slope·residual, position by position
    expected = torch.empty_like(student).flatten(2)
    with torch.no_grad():
        s_maps, t_maps = student.flatten(2), teacher.flatten(2)
        for b in range(3):
            for c in range(2):
                for members in (s_maps[b, c] - t_maps[b, c]).square().argsort().split(group_size):
                    s, t = s_maps[b, c, members], t_maps[b, c, members]
                    slope, intercept = fit(s, t)
                    expected[b, c, members] = 2 * slope * (slope * s + intercept - t) / 3
    torch.testing.assert_close(actual.flatten(2), expected)


def test_logged_values_are_detached_and_teacher_gets_no_gradient():
    student, teacher = maps()
    student.requires_grad_()
    teacher.requires_grad_()
    for loss in (lift, place, output):
        terms = loss(student, teacher)
        assert not any(t.requires_grad for t in (terms.fine_weight, terms.slope, terms.intercept))
        terms.total.backward()
        assert teacher.grad is None
    assert student.grad is not None


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_weight_stays_in_the_unit_interval(scale):
    for seed in range(5):
        student, teacher = maps(dtype=torch.float32, seed=seed)
        assert 0 <= place(scale * student, teacher).fine_weight.item() <= 1
    far = place(torch.randn(2, 1, 8, 8) * 1e-3, teacher[:2, :1, :6].new_ones(2, 1, 8, 8) * 5)
    assert far.fine_weight.item() == 0
    assert far.total == far.coarse


@pytest.mark.parametrize("group_size", [5, 16, 48])
def test_constant_student_is_finite(group_size):
    _, teacher = maps(dtype=torch.float32)
    student = torch.full_like(teacher, 0.3).requires_grad_()
    terms = place(student, teacher, group_size=group_size)
    terms.total.backward()
    assert all(torch.isfinite(t) for t in terms)
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("name", ["output", "lift", "place"])
def test_half_precision_and_autocast_compute_in_float32(name):
    student, teacher = (m.to(torch.bfloat16) for m in maps(dtype=torch.float32))
    expected = KD[name](student.float(), teacher.float(), group_size=5, reduction="sum")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = KD[name](student, teacher, group_size=5, reduction="sum")
        slope, _ = fit(student, teacher)
    assert slope.dtype == torch.float32
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, e)


def test_output_and_diffusion_are_the_squared_error():
    student, teacher = maps()
    squared = ((student - teacher).numpy() ** 2).sum()
    terms = output(student, teacher)
    assert terms.total.item() == pytest.approx(squared / 3, rel=1e-12)
    assert (terms.coarse.item(), terms.fine_weight.item()) == (0, 1)
    assert terms.slope == lift(student, teacher).slope
    assert terms.intercept == lift(student, teacher).intercept
    assert diffusion(student, teacher).item() == pytest.approx(squared / 3, rel=1e-12)
    assert diffusion(student, teacher, reduction="mean").item() == pytest.approx(squared / student.numel(), rel=1e-12)


def test_registry_names_and_one_signature():
    student, teacher = maps()
    assert set(KD) == {"none", "output", "lift", "place"}
    assert KD["none"] is None
    for name, direct in (("output", output(student, teacher)), ("lift", lift(student, teacher))):
        assert KD[name](student, teacher, group_size=16, reduction="sum") == direct
    assert KD["place"](student, teacher, group_size=5, reduction="sum") == place(student, teacher, group_size=5)


def test_gradient_descent_on_place_recovers_an_affine_student():
    _, teacher = maps((8, 1, 8, 8), dtype=torch.float32)
    a, b = torch.tensor(0.4, requires_grad=True), torch.tensor(0.5, requires_grad=True)
    optimizer = torch.optim.Adam([a, b], lr=0.02)
    for _ in range(300):
        optimizer.zero_grad()
        terms = place(a * teacher + b, teacher, reduction="mean")
        terms.total.backward()
        optimizer.step()
    assert a.item() == pytest.approx(1, abs=0.05)
    assert b.item() == pytest.approx(0, abs=0.05)
    assert terms.fine_weight.item() > 0.8


def test_bad_input_is_refused():
    student, teacher = maps()
    with pytest.raises(BadInputError, match="shapes differ"):
        place(student, teacher[:, :1])  # would broadcast
    with pytest.raises(BadInputError, match="shapes differ"):
        diffusion(student, teacher[:1])
    with pytest.raises(BadInputError, match="group_size"):
        place(student, teacher, group_size=0)
    with pytest.raises(BadInputError, match="unknown reduction: men") as caught:
        output(student, teacher, reduction="men")
    assert caught.value.hint == "did you mean: mean"
