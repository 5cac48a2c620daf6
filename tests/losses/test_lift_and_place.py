"""LIFT and PLACE against closed forms, numpy.polyfit, and a plain-loop NumPy implementation of the same mathematics."""

from math import isqrt

import numpy as np
import pytest
import torch

from edgediff.errors import BadInputError
from edgediff.losses import fit, lift, place
from edgediff.losses.grouping import order

EPS = 1e-7
GROUPINGS = ("error", "raster", "random")


def raster_by_loops(height, width, side):
    """Positions patch after patch, with four loops."""
    return np.array(
        [
            row * width + column
            for top in range(0, height, side)
            for left in range(0, width, side)
            for row in range(top, min(top + side, height))
            for column in range(left, min(left + side, width))
        ]
    )


def place_by_loops(
    student,
    teacher,
    group_size,
    *,
    reduction="sum",
    terms="both",
    norm="l1",
    grouping="error",
    fine_weight=None,
    permutation=None,
):
    """Independent reference: one group at a time, no tensors, no masks."""
    student, teacher = student.numpy(), teacher.numpy()
    batch, channels, height, width = student.shape
    coarse, fine = np.zeros(batch), np.zeros(batch)
    slopes, intercepts = [], []
    for b in range(batch):
        for c in range(channels):
            s_map, t_map = student[b, c].ravel(), teacher[b, c].ravel()
            if group_size >= len(s_map):
                order = np.arange(len(s_map))
            elif grouping == "error":
                order = np.argsort((t_map - s_map) ** 2)
            elif grouping == "raster":
                order = raster_by_loops(height, width, isqrt(group_size))
            else:
                order = permutation
            starts = list(range(0, len(order), group_size))
            if len(starts) > 1 and len(order) - starts[-1] < min(3, group_size):  # one or two elements left over
                starts.pop()
            for start, end in zip(starts, [*starts[1:], len(order)], strict=True):
                members = order[start:end]
                s, t = s_map[members], t_map[members]
                slope = np.mean((s - s.mean()) * (t - t.mean())) / (np.mean((s - s.mean()) ** 2) + EPS)
                intercept = t.mean() - slope * s.mean()
                if norm == "l1":
                    coarse[b] += len(members) * (abs(slope - 1) + abs(intercept))
                else:
                    coarse[b] += len(members) * ((slope - 1) ** 2 + intercept**2)
                fine[b] += np.sum((slope * s + intercept - t) ** 2)
                slopes.append(slope)
                intercepts.append(intercept)
    if reduction == "mean":
        coarse, fine = coarse / student[0].size, fine / student[0].size
    if fine_weight is not None:
        weight = fine_weight
    elif terms == "fine":
        weight = 1
    else:
        weight = 1 - min(1, np.mean(np.abs(np.array(slopes) - 1)) + np.mean(np.abs(intercepts)))
    total = {"both": coarse + weight * fine, "coarse": coarse, "fine": weight * fine}[terms]
    return total, coarse, fine, weight, np.mean(slopes), np.mean(intercepts)


def assert_same_terms(terms, expected):
    # float64 on both sides: only the order of additions differs
    for value, wanted in zip(terms, expected, strict=True):
        np.testing.assert_allclose(value.detach().numpy(), wanted, rtol=1e-9, atol=1e-12)


def test_fit_agrees_with_polyfit(maps):
    student, teacher = maps((5, 40))
    slope, intercept = fit(student, teacher, eps=0.0)
    expected = np.array([np.polyfit(s, t, 1) for s, t in zip(student.numpy(), teacher.numpy(), strict=True)])
    np.testing.assert_allclose(slope.numpy(), expected[:, 0], rtol=0, atol=1e-9)
    np.testing.assert_allclose(intercept.numpy(), expected[:, 1], rtol=0, atol=1e-9)


def test_fit_counts_only_masked_elements(maps):
    student, teacher = maps((4, 10))
    mask = torch.ones(10, dtype=torch.float64)
    mask[7:] = 0
    for masked, short in zip(fit(student, teacher, mask=mask), fit(student[:, :7], teacher[:, :7]), strict=True):
        torch.testing.assert_close(masked, short, rtol=1e-12, atol=1e-12)


def test_fit_keeps_its_digits_far_from_zero(maps):
    # Raw moments E[ST] - E[S]E[T] lose every digit in float32 at an offset of 1000; centred ones keep about four.
    student, teacher = maps((2, 64), dtype=torch.float32)
    slope, _ = fit(student + 1000, teacher + 1000)
    torch.testing.assert_close(slope, fit(student, teacher)[0], rtol=1e-3, atol=0)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("group_size", [1, 5, 16, 23, 45, 47, 48, 100])  # 48 positions: dividing, ragged, whole, beyond
def test_place_agrees_with_plain_loops(group_size, reduction, maps):
    student, teacher = maps()
    terms = place(student, teacher, group_size=group_size, reduction=reduction)
    assert_same_terms(terms, place_by_loops(student, teacher, group_size, reduction=reduction))


@pytest.mark.parametrize("fine_weight", [None, 0.0, 0.3, 1.0])
@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("terms", ["both", "coarse", "fine"])
def test_ablations_of_the_terms_agree_with_plain_loops(terms, norm, fine_weight, maps):
    student, teacher = maps()
    settings = {"terms": terms, "norm": norm, "fine_weight": fine_weight, "reduction": "mean"}
    assert_same_terms(
        place(student, teacher, group_size=5, **settings), place_by_loops(student, teacher, 5, **settings)
    )
    assert_same_terms(lift(student, teacher, **settings), place_by_loops(student, teacher, 48, **settings))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_positions_are_in_the_order_of_their_errors(dtype):
    """Of errors from none to infinite, and of equal ones."""
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(5, 2, 40, 30, generator=generator, dtype=dtype)
    student *= 10.0 ** torch.randint(-25, 25, student.shape, generator=generator)
    student[0, 0], student[0, 1, :3], student[1, 0, 7, 9] = 1.0, 0.0, torch.inf
    found = order(student, torch.zeros_like(student), 16, "error")
    errors = student.flatten(2).square().gather(-1, found)
    assert (errors[..., 1:] >= errors[..., :-1]).all()
    assert torch.equal(found.sort().values, torch.arange(1200).expand(5, 2, -1))


@pytest.mark.parametrize("group_size", [1, 2, 4, 7, 9, 16, 17, 48])
@pytest.mark.parametrize("shape", [(3, 2, 6, 8), (2, 1, 7, 5)])
@pytest.mark.parametrize("grouping", GROUPINGS)
def test_ablations_of_the_grouping_agree_with_plain_loops(grouping, shape, group_size, maps):
    student, teacher = maps(shape)
    terms = place(
        student, teacher, group_size=group_size, grouping=grouping, generator=torch.Generator().manual_seed(3)
    )
    permutation = torch.randperm(shape[2] * shape[3], generator=torch.Generator().manual_seed(3)).numpy()
    expected = place_by_loops(student, teacher, group_size, grouping=grouping, permutation=permutation)
    assert_same_terms(terms, expected)


def test_random_groups_are_new_at_every_call(maps):
    student, teacher = maps()
    generator = torch.Generator().manual_seed(3)
    first, second = (place(student, teacher, group_size=4, grouping="random", generator=generator) for _ in range(2))
    assert not torch.equal(first.total, second.total)


@pytest.mark.parametrize(("shape", "group_size"), [((3, 2, 6, 8), size) for size in (4, 5, 48)] + [((2, 4, 7, 7), 16)])
def test_perfect_student(shape, group_size, maps):
    """Of whatever side: 7x7 elements are three groups of 16 and one element, which is no group of its own."""
    _, teacher = maps(shape)
    terms = place(teacher.clone(), teacher, group_size=group_size)
    # The eps in the variance moves the slope by eps / var, about 1e-7 for unit variance and more in a narrow group.
    assert terms.total.max().item() < 48 * 2 * 1e-4
    assert terms.fine_weight.item() == pytest.approx(1, abs=1e-4)
    assert terms.slope.item() == pytest.approx(1, abs=1e-4)
    assert terms.intercept.item() == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize(("a", "b"), [(2.0, 0.5), (-0.7, 0.0), (1.0, -3.0)])
def test_affine_student_is_undone_by_the_fit(a, b, maps):
    _, teacher = maps()
    terms = lift(a * teacher + b, teacher)
    assert terms.slope.item() == pytest.approx(1 / a, rel=1e-6)
    assert terms.intercept.item() == pytest.approx(-b / a, abs=1e-6)
    assert terms.fine.max().item() < 1e-9
    assert terms.coarse.tolist() == pytest.approx([2 * 48 * (abs(1 / a - 1) + abs(b / a))] * 3, rel=1e-5)


def test_permuting_positions_changes_nothing(maps):
    student, teacher = maps()
    order = torch.randperm(48, generator=torch.Generator().manual_seed(1))
    shuffled = [m.flatten(2)[..., order].reshape(m.shape) for m in (student, teacher)]
    for before, after in zip(place(student, teacher, group_size=5), place(*shuffled, group_size=5), strict=True):
        torch.testing.assert_close(before, after, rtol=1e-12, atol=1e-12)


def test_one_group_is_lift(maps):
    student, teacher = maps()
    for group_size in (48, 1000):
        for one, other in zip(place(student, teacher, group_size=group_size), lift(student, teacher), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("grouping", ["error", "raster"])
@pytest.mark.parametrize("group_size", [4, 5, 48])
def test_gradient_of_the_coarse_term(group_size, grouping, norm, maps):
    student, teacher = maps((2, 2, 3, 4))
    settings = {"group_size": group_size, "grouping": grouping, "norm": norm}
    assert torch.autograd.gradcheck(
        lambda s: place(s, teacher, **settings).coarse, student.requires_grad_(), eps=1e-7, atol=1e-4
    )


@pytest.mark.parametrize("group_size", [4, 5, 48])
def test_fine_gradient_treats_fit_and_weight_as_constants(group_size, maps):
    student, teacher = maps()
    student.requires_grad_()
    terms = place(student, teacher, group_size=group_size)
    (actual,) = torch.autograd.grad(terms.fine.sum(), student, retain_graph=True)
    (total,) = torch.autograd.grad(terms.total.sum(), student, retain_graph=True)
    (coarse,) = torch.autograd.grad(terms.coarse.sum(), student)
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
                    expected[b, c, members] = 2 * slope * (slope * s + intercept - t)
    torch.testing.assert_close(actual.flatten(2), expected)


def test_a_given_weight_may_learn(maps):
    student, teacher = maps()
    weight = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    terms = place(student, teacher, fine_weight=weight)
    (gradient,) = torch.autograd.grad(terms.total.sum(), weight)
    torch.testing.assert_close(gradient, terms.fine.sum())
    assert not terms.fine_weight.requires_grad and terms.fine_weight == weight


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_adaptive_weight_stays_in_the_unit_interval(scale, maps):
    for seed in range(5):
        student, teacher = maps(dtype=torch.float32, seed=seed)
        assert 0 <= place(scale * student, teacher).fine_weight.item() <= 1
    far = place(torch.randn(2, 1, 8, 8) * 1e-3, torch.full((2, 1, 8, 8), 5.0))
    assert far.fine_weight.item() == 0
    assert torch.equal(far.total, far.coarse)


@pytest.mark.parametrize("grouping", GROUPINGS)
@pytest.mark.parametrize("group_size", [5, 16, 48])
def test_constant_student_is_finite(group_size, grouping, maps):
    _, teacher = maps(dtype=torch.float32)
    student = torch.full_like(teacher, 0.3).requires_grad_()
    terms = place(student, teacher, group_size=group_size, grouping=grouping)
    terms.total.sum().backward()
    assert all(torch.isfinite(t).all() for t in terms)
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("grouping", ["error", "raster"])
def test_samples_do_not_mix_under_a_given_weight(grouping, maps):
    student, teacher = maps()
    whole = place(student, teacher, group_size=5, grouping=grouping, fine_weight=0.5)
    for row in range(3):
        alone = place(student[row : row + 1], teacher[row : row + 1], group_size=5, grouping=grouping, fine_weight=0.5)
        for name in ("total", "coarse", "fine"):
            torch.testing.assert_close(getattr(whole, name)[row : row + 1], getattr(alone, name))


def test_gradient_descent_on_place_recovers_an_affine_student(maps):
    _, teacher = maps((8, 1, 8, 8), dtype=torch.float32)
    a, b = torch.tensor(0.4, requires_grad=True), torch.tensor(0.5, requires_grad=True)
    optimizer = torch.optim.Adam([a, b], lr=0.02)
    for _ in range(300):
        optimizer.zero_grad()
        terms = place(a * teacher + b, teacher, reduction="mean")
        terms.total.mean().backward()
        optimizer.step()
    assert a.item() == pytest.approx(1, abs=0.05)
    assert b.item() == pytest.approx(0, abs=0.05)
    assert terms.fine_weight.item() > 0.8


def test_bad_settings_are_refused(maps):
    student, teacher = maps()
    with pytest.raises(BadInputError, match="shapes differ"):
        place(student, teacher[:, :1])  # would broadcast
    with pytest.raises(BadInputError, match="group_size"):
        place(student, teacher, group_size=0)
    for name, value, hint in (("terms", "cosrae", "coarse"), ("norm", "L1", "l1"), ("grouping", "eror", "error")):
        with pytest.raises(BadInputError, match=f"unknown {name}: {value}") as caught:
            place(student, teacher, **{name: value})
        assert caught.value.hint == f"did you mean: {hint}"
    with pytest.raises(BadInputError, match="two spatial axes: 1"):
        place(student.flatten(2), teacher.flatten(2), grouping="raster")
    with pytest.raises(BadInputError, match="no fine weight to learn"):
        place(student, teacher, terms="coarse", fine_weight=torch.tensor(1.0, requires_grad=True))
