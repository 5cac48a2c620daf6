"""Searching again with what measurements show, on a device that is not what its profile says."""

from dataclasses import replace

import pytest
from budget_models import UNET, every_student

from edgediff.budgets.agreement import CLOSE, MOST, agreed
from edgediff.budgets.choice import choose
from edgediff.budgets.costs import CostModel
from edgediff.budgets.measure import beside
from edgediff.output import QUIET
from edgediff.recipe import PruneConfig


def search_with(space, table, budget):
    settings = PruneConfig(latency_ms=budget, search="widths_and_blocks")
    return lambda measured: choose(UNET, space.config, settings, table, None, QUIET, measured)


@pytest.mark.parametrize("narrow_costs", [1.3, 0.8])
def test_the_student_is_predicted_as_the_device_runs_it(space, table, narrow_costs):
    budget, by_profile, asked = 0.6 * table.teacher_ms, CostModel(space, table), []

    def measure(choice):  # as the profile says, but where the first level is narrow
        asked.append(choice.student)
        narrow = choice.student.widths[0] <= space.teacher.widths[0] / 2
        return by_profile(choice.student)["latency_ms"] * (narrow_costs if narrow else 1.0)

    choice = agreed(search_with(space, table, budget), measure, QUIET)
    assert len(set(asked)) == len(asked) <= MOST
    predicted = choice.record.found.costs["latency_ms"]
    assert predicted <= budget and predicted == pytest.approx(measure(choice), rel=1.5 * CLOSE)


def test_a_profile_that_tells_the_truth_is_asked_once(space, table):
    find = search_with(space, table, 0.6 * table.teacher_ms)
    asked = []

    def measure(choice):
        asked.append(choice.student)
        return choice.record.found.costs["latency_ms"]

    assert agreed(find, measure, QUIET).student == find({}).student and len(asked) == 1


def test_a_device_that_never_agrees_is_not_asked_for_ever(space, table):
    asked = []

    def measure(choice):
        asked.append(choice.student)
        return choice.record.found.costs["latency_ms"] * 1.2

    agreed(search_with(space, table, 0.6 * table.teacher_ms), measure, QUIET)
    assert len(asked) <= MOST


def test_a_students_step_is_a_share_of_its_teachers(space):
    with beside(UNET, space.config, 1) as share:
        assert 0.5 < share(space.config) < 2
        smallest = min(every_student(space), key=lambda student: sum(student.widths))
        assert share(space.student_config(replace(smallest, removed=frozenset()))) < 1
