"""What every loss of predictions promises, and the closed forms of PLACE's rivals."""

import numpy as np
import pytest
import torch

from edgediff.errors import BadInputError
from edgediff.losses import LOSSES, diffusion, dist, lift, multi_scale, output, squared_error
from edgediff.recipe import FEATURE_LOSSES, KD_PRESETS, PREDICTION_LOSSES

PREDICTION = {name: loss.function for name, loss in LOSSES.items() if loss.kind == "prediction"}


def test_registry_and_presets():
    assert list(LOSSES) == [
        *("output", "lift", "place", "multi_scale", "dist", "feature", "attention", "masked_feature")
    ]
    for kind, names in (("prediction", PREDICTION_LOSSES), ("feature", FEATURE_LOSSES)):  # as recipes know them
        assert tuple(name for name, loss in LOSSES.items() if loss.kind == kind) == names
    assert [name for name, loss in LOSSES.items() if loss.adapters] == ["feature", "masked_feature"]
    assert set(KD_PRESETS) == {"none", "output+feature", "angular", "bk_sdm"} and KD_PRESETS["none"] == {}
    assert all(set(weights) <= set(LOSSES) for weights in KD_PRESETS.values())


@pytest.mark.parametrize("name", PREDICTION)
def test_one_value_a_sample_and_detached_scalars(name, maps):
    student, teacher = maps()
    student.requires_grad_()
    teacher.requires_grad_()
    terms = PREDICTION[name](student, teacher)
    assert terms.total.shape == terms.coarse.shape == terms.fine.shape == (3,)
    for value in (terms.fine_weight, terms.slope, terms.intercept):
        assert value.shape == () and not value.requires_grad
    terms.total.sum().backward()
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None


@pytest.mark.parametrize("name", PREDICTION)
def test_reductions_differ_by_the_number_of_elements(name, maps):
    student, teacher = maps()
    summed, mean = (PREDICTION[name](student, teacher, reduction=reduction) for reduction in ("sum", "mean"))
    for part in ("total", "coarse", "fine"):
        torch.testing.assert_close(getattr(summed, part), getattr(mean, part) * 2 * 48)
    assert summed.fine_weight == mean.fine_weight


@pytest.mark.parametrize("name", PREDICTION)
def test_a_perfect_student_has_no_loss(name, maps):
    _, teacher = maps()
    # The epsilons of LIFT, PLACE and DIST, 1e-7 and 1e-8 over variances of about one, and less in a narrow group
    assert PREDICTION[name](teacher.clone(), teacher, reduction="mean").total.abs().max() < 1e-4


@pytest.mark.parametrize("name", PREDICTION)
def test_constant_predictions_are_finite(name, maps):
    _, teacher = maps(dtype=torch.float32)
    for target in (teacher, torch.zeros_like(teacher)):
        student = torch.full_like(teacher, 0.3).requires_grad_()
        terms = PREDICTION[name](student, target)
        terms.total.sum().backward()
        assert all(torch.isfinite(value).all() for value in terms)
        assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("name", PREDICTION)
def test_half_precision_and_autocast_compute_in_float32(name, maps):
    student, teacher = (m.to(torch.bfloat16) for m in maps(dtype=torch.float32))
    expected = PREDICTION[name](student.float(), teacher.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = PREDICTION[name](student, teacher)
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, e)


@pytest.mark.parametrize("name", PREDICTION)
def test_bad_input_is_refused(name, maps):
    student, teacher = maps()
    with pytest.raises(BadInputError, match="shapes differ"):
        PREDICTION[name](student, teacher[:, :1])  # would broadcast
    with pytest.raises(BadInputError, match="unknown reduction: men") as caught:
        PREDICTION[name](student, teacher, reduction="men")
    assert caught.value.hint == "did you mean: mean"


def test_output_and_diffusion_are_the_squared_error(maps):
    student, teacher = maps()
    squared = ((student - teacher).numpy() ** 2).sum((1, 2, 3))
    terms = output(student, teacher)
    for values in (terms.total, terms.fine, diffusion(student, teacher), squared_error(student, teacher, "sum")):
        np.testing.assert_allclose(values.numpy(), squared, rtol=1e-12)
    np.testing.assert_allclose(diffusion(student, teacher, reduction="mean").numpy(), squared / 96, rtol=1e-12)
    assert (terms.coarse.tolist(), terms.fine_weight.item()) == ([0, 0, 0], 1)
    assert terms.slope == lift(student, teacher).slope
    assert terms.intercept == lift(student, teacher).intercept


@pytest.mark.parametrize("shape", [(2, 2, 8, 8), (3, 2, 6, 8), (2, 1, 7, 5), (2, 3, 1, 4), (2, 2, 9)])
def test_multi_scale_agrees_with_plain_loops(shape, maps):
    student, teacher = maps(shape)
    difference = (student - teacher).numpy().reshape(*shape[:3], -1)
    expected = np.zeros(shape[0])
    window, levels = 1, 0
    while window <= min(shape[2:]):
        height, width = difference.shape[2:]
        across = 1 if len(shape) == 3 else window
        tiles = [
            difference[:, :, top : top + window, left : left + across].mean((2, 3))
            for top in range(0, height, window)
            for left in range(0, width, across)
        ]
        expected += np.mean(np.square(tiles), axis=(0, 2))
        window, levels = 2 * window, levels + 1
    actual = multi_scale(student, teacher, reduction="mean").total.numpy()
    np.testing.assert_allclose(actual, expected / levels, rtol=1e-12)


def test_multi_scale_sees_what_pooling_keeps():
    teacher = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    offset = multi_scale(teacher + 0.5, teacher, reduction="mean").total.item()
    assert offset == pytest.approx(0.25, rel=1e-12)  # the same at every level
    checks = 0.5 * (-1.0) ** torch.arange(8).add(torch.arange(8)[:, None])
    assert multi_scale(checks.view(1, 1, 8, 8), teacher, reduction="mean").total.item() == pytest.approx(0.25 / 4)


def test_dist_agrees_with_corrcoef(maps):
    student, teacher = maps()
    s, t = student.numpy(), teacher.numpy()
    inter = np.array(
        [[1 - np.corrcoef(s[b, c].ravel(), t[b, c].ravel())[0, 1] for c in range(2)] for b in range(3)]
    ).mean(1)
    over_batch = zip(s.reshape(3, -1).T, t.reshape(3, -1).T, strict=True)
    intra = np.mean([1 - np.corrcoef(one, other)[0, 1] for one, other in over_batch])
    actual = dist(student, teacher, reduction="mean", eps=0.0).total.numpy()
    np.testing.assert_allclose(actual, inter + intra, rtol=1e-9)


@pytest.mark.parametrize(("a", "expected"), [(3.0, 0), (-0.5, 4)])
def test_dist_is_blind_to_scale_and_offset(a, expected, maps):
    _, teacher = maps()
    total = dist(a * teacher + 2, teacher, reduction="mean", eps=0.0).total
    np.testing.assert_allclose(total.numpy(), expected, atol=1e-12)


def test_dist_is_blind_to_the_scale_of_small_maps_too(maps):
    """At the edge of images, or in x0 space, what a teacher says varies by a hundredth."""
    _, teacher = maps()
    for a in (0.3, 1.0, 10.0):
        total = dist(a * 0.01 * teacher, 0.01 * teacher, reduction="mean").total
        assert total.max() < 0.05


def test_a_sample_alone_correlates_with_nothing_over_the_batch(maps):
    student, teacher = (m[:1] for m in maps())
    alone = dist(student, teacher, reduction="mean", eps=0.0 + 1e-12).total.item()
    inter = np.mean([np.corrcoef(student[0, c].ravel(), teacher[0, c].ravel())[0, 1] for c in range(2)])
    assert alone == pytest.approx(2 - inter, rel=1e-9)
