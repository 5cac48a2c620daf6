"""The search against brute force, its refusals, and the record that it leaves."""

import pytest
from budget_models import UNET, costs_of, every_student, made_up_table, small_config

from edgediff.budgets.choice import choose
from edgediff.budgets.kept import Kept
from edgediff.budgets.search import Point, pareto, search
from edgediff.budgets.space import Space, Student
from edgediff.errors import BadInputError
from edgediff.metrics.cost import model_cost
from edgediff.pruning import importance_scores
from edgediff.pruning.targets import uniform_widths
from edgediff.recipe import PruneConfig, check

CLOSE = 0.97  # of the best importance: a search that follows one path only reaches 0.84 at the worst of these budgets


@pytest.fixture(scope="module")
def space():
    return Space(UNET, small_config(), blocks=True)


@pytest.fixture(scope="module")
def cost(space):
    return costs_of(space)


@pytest.fixture(scope="module")
def table(space):
    return made_up_table(UNET, space.config)


@pytest.fixture(scope="module", params=["magnitude", "random"])
def kept(request, space):
    return Kept(space, importance_scores(request.param, UNET.build(space.config), UNET))


@pytest.mark.parametrize("share", [0.8, 0.5, 0.3, 0.15])
@pytest.mark.parametrize(
    "names", [("latency_ms",), ("params",), ("macs",), ("memory_mb",), ("latency_ms", "params")], ids="+".join
)
def test_the_search_comes_close_to_the_best_of_all_students(space, cost, kept, names, share):
    students = {student: cost(student) for student in every_student(space)}
    least = {name: min(costs[name] for costs in students.values()) for name in names}
    whole = cost(space.teacher)
    budgets = {name: least[name] + share * (whole[name] - least[name]) for name in names}
    within = [s for s, costs in students.items() if all(costs[name] <= budgets[name] for name in names)]
    found, passed = search(space, kept, cost, budgets)
    assert found.student in within
    assert found.kept >= CLOSE * max(map(kept, within))
    assert passed[0].student == space.teacher and passed[-1].costs[names[0]] <= budgets[names[0]]


def test_pareto_points_beat_each_other_in_something():
    points = [
        Point(Student((i,)), {"params": cost}, kept)
        for i, (cost, kept) in enumerate([(10, 1.0), (8, 0.9), (9, 0.8), (4, 0.9), (2, 0.1), (3, 0.05)])
    ]
    found = pareto([*points, points[0]], "params")
    assert [point.student.widths[0] for point in found] == [0, 3, 4]


def settings(**changes):
    return check(changes, PruneConfig)


def test_a_choice_is_within_every_budget_when_it_is_built():
    config = small_config()
    whole = model_cost(UNET, config)
    choice = choose(UNET, config, settings(params=whole.params // 3, macs=whole.macs // 4), None, None)
    shallow = UNET.without_blocks(config, choice.removed).config if choice.removed else config
    real = model_cost(UNET, UNET.student_config(shallow, choice.widths))
    assert real.params <= whole.params // 3 and real.macs <= whole.macs // 4
    assert choice.record.found.costs == {"params": real.params, "macs": real.macs}
    assert choice.record.device == "" and choice.record.threads is None
    assert choice.record.passed[0].importance_kept == 1


@pytest.mark.slow
def test_uniform_gives_the_largest_student_of_one_ratio():
    config = small_config()
    students = [widths for _, widths in uniform_widths(UNET, config)]
    counts = [model_cost(UNET, UNET.student_config(config, widths)).params for widths in students]
    assert len(students) > 2
    for widths, count in zip(students[1:], counts[1:], strict=True):
        assert choose(UNET, config, settings(params=count, search="uniform"), None, None).widths == widths
    with pytest.raises(BadInputError, match="no student"):
        choose(UNET, config, settings(params=counts[-1] - 1, search="uniform"), None, None)


@pytest.mark.slow
def test_a_looser_search_keeps_at_least_what_a_tighter_one_does(table):
    config = small_config()
    budget = 0.7 * table.teacher_ms
    kept = [
        choose(UNET, config, settings(latency_ms=budget, search=name), table, None).record.found.importance_kept
        for name in ("uniform", "widths", "widths_and_blocks")
    ]
    assert kept == sorted(kept)


def test_blocks_that_the_recipe_has_settled_are_not_touched():
    config = small_config()
    depth = {"keep": 2, "by": "last"}
    budget = model_cost(UNET, config).params // 2
    choice = choose(UNET, config, settings(params=budget, depth=depth), None, None)
    assert choice.removed == ()


@pytest.mark.parametrize(
    ("students", "budget"),
    [("uniform", {"params": 3}), ("widths", {"memory_mb": 20.0}), ("widths_and_blocks", {"latency_ms": 0.001})],
)
def test_a_budget_out_of_reach_is_refused_with_the_reachable_range(students, budget, table):
    with pytest.raises(BadInputError, match="no student of this teacher") as error:
        choose(UNET, small_config(), settings(**budget, search=students), table, None)
    assert error.value.hint.startswith("reachable: ")


def test_a_budget_that_the_teacher_meets_is_refused():
    with pytest.raises(BadInputError, match="nothing to prune, the teacher is within the budget"):
        choose(UNET, small_config(), settings(params=10**9), None, None)
