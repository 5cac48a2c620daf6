"""Weights of the fine term: scheduled ones, and one that learns without going to zero."""

from functools import partial

import pytest
import torch

from edgediff.errors import BadInputError
from edgediff.losses import lift, place
from edgediff.losses.fine_weight import UNIT, LearnableFineWeight, scheduled


@pytest.mark.parametrize(
    ("kind", "weights"), [("fixed", [1, 1, 1, 1]), ("linear", [0, 0.25, 0.5, 1]), ("cosine", [0, 0.1464466, 0.5, 1])]
)
def test_schedules(kind, weights):
    assert [scheduled(kind, progress) for progress in (0, 0.25, 0.5, 1)] == pytest.approx(weights, abs=1e-7)


def test_bad_schedules_are_refused():
    with pytest.raises(BadInputError, match="unknown schedule: cosin") as caught:
        scheduled("cosin", 0.5)
    assert caught.value.hint == "did you mean: cosine"
    for progress in (-0.1, 1.1, float("nan")):
        with pytest.raises(BadInputError, match="progress"):
            scheduled("linear", progress)


@pytest.mark.parametrize("terms", ["both", "fine"])
def test_a_new_learnable_weight_is_one_and_costs_nothing(terms, maps):
    student, teacher = maps()
    found = LearnableFineWeight()(partial(lift, terms=terms))(student, teacher)
    fixed = lift(student, teacher, terms=terms, fine_weight=1.0)
    for one, other in zip(found, fixed, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_learned_weight_is_the_inverse_of_the_mean_squared_residual(reduction, maps):
    """The stationary point in closed form: d/ds (exp(-s)·fine + s·elements) = 0."""
    student, teacher = maps()
    residual = place(student, teacher, group_size=5, reduction="mean").fine.mean()
    weight = LearnableFineWeight()
    with torch.no_grad():
        weight.units.copy_(residual.log() / UNIT)
    terms = weight(partial(place, group_size=5))(student, teacher, reduction=reduction)
    terms.total.mean().backward()
    scale = 96 if reduction == "sum" else 1
    assert terms.fine_weight.item() == pytest.approx(1 / residual.item(), rel=1e-5)  # the parameter is float32
    assert weight.units.grad.item() == pytest.approx(0, abs=1e-5 * scale)


def test_the_weight_can_be_cut_by_fsdp():
    """FSDP 2 refuses parameters without an axis."""
    assert all(parameter.dim() > 0 for parameter in LearnableFineWeight().parameters())


def test_learning_leads_there_from_one(maps):
    """At the learning rate of students, from a weight of 1 to one of more than a hundred."""
    student, teacher = (0.05 * map_ for map_ in maps())
    weight = LearnableFineWeight()
    optimizer = torch.optim.Adam(weight.parameters(), lr=1e-3)
    for _ in range(1000):
        optimizer.zero_grad()
        terms = weight(lift)(student, teacher, reduction="mean")
        terms.total.mean().backward()
        optimizer.step()
    assert terms.fine_weight.item() == pytest.approx(1 / terms.fine.mean().item(), rel=1e-2)
    assert terms.fine_weight.item() > 100


def test_the_weight_carries_gradient_to_the_student(maps):
    student, teacher = maps()
    student.requires_grad_()
    terms = LearnableFineWeight()(place)(student, teacher)
    (gradient,) = torch.autograd.grad(terms.total.sum(), student)
    (fixed,) = torch.autograd.grad(place(student, teacher, fine_weight=1.0).total.sum(), student)
    torch.testing.assert_close(gradient, fixed)
