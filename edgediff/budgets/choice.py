"""Which student a budget buys: among uniformly pruned ones the largest, otherwise the one that keeps most."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from edgediff.budgets.costs import CostModel
from edgediff.budgets.kept import Kept
from edgediff.budgets.search import Costs, Point, pareto, search, starts, unreachable, within
from edgediff.budgets.space import Space, Student
from edgediff.budgets.table import LatencyTable
from edgediff.errors import BadInputError
from edgediff.families import Config, Family, Widths
from edgediff.output import QUIET, Output
from edgediff.pruning import Scores
from edgediff.pruning.targets import uniform_widths
from edgediff.recipe import PruneConfig
from edgediff.results import Search, SearchPoint


@dataclass(frozen=True)
class Choice:
    """What goes: blocks first, then channels down to these widths.

    Also the record of the search, and its student: as a point of the space, and as a stock config.
    """

    removed: tuple[str, ...]
    widths: Widths
    record: Search
    student: Student
    student_config: Config


def choose(
    family: Family,
    config: Config,
    settings: PruneConfig,
    table: LatencyTable | None,
    scores: Scores | None,
    output: Output = QUIET,
    measured: Mapping[Student, float] | None = None,
) -> Choice:
    """Return the student within `settings.budgets`.

    Args: config: of the model to be cut.
          table: the device's profile; needed for latency and memory.
          scores: importance of every parameter of that model; None, before it is known: all channels matter the same.
          output: where the search shows how far it is.
          measured: students whose steps were measured beside the profile, in ms of its device.
    Raises: BadInputError, with the reachable range, for budgets that no student meets, or that this model meets whole.
    """
    budgets = settings.budgets
    space = Space(family, config, blocks=settings.search == "widths_and_blocks" and settings.depth is None)
    cost, kept = CostModel(space, table, output, measured), Kept(space, scores, output)
    teacher = Point(space.teacher, cost(space.teacher), kept(space.teacher))
    if within(teacher.costs, budgets):
        asked = ", ".join(f"{name} {value:,g}, teacher: {teacher.costs[name]:,.4g}" for name, value in budgets.items())
        raise BadInputError(f"nothing to prune, the teacher is within the budget ({asked})", "give a smaller budget")
    if settings.search == "uniform":
        found, passed = _largest_uniform(space, kept, cost, budgets)
    else:
        with output.progress("search", len(starts(space))) as progress:
            found, passed = search(space, kept, cost, budgets, progress.advance)

    def shown(point: Point) -> SearchPoint:
        return SearchPoint(
            widths=space.widths(point.student),
            blocks_removed=len(point.student.removed),
            costs=dict(point.costs),
            importance_kept=point.kept,
        )

    record = Search(
        students=settings.search,
        budgets=budgets,
        device=table.device if table and settings.needs_profile else "",
        threads=table.threads if table and settings.needs_profile else None,
        teacher=dict(teacher.costs),
        found=shown(found),
        passed=[shown(point) for point in passed],
    )
    removed = tuple(block for block in space.blocks if block in found.student.removed)
    return Choice(removed, space.widths(found.student), record, found.student, space.student_config(found.student))


def _largest_uniform(
    space: Space, kept: Callable[[Student], float], cost: Callable[[Student], Costs], budgets: Costs
) -> tuple[Point, list[Point]]:
    """Return the first student within the budgets that a rising ratio of all levels gives, and those before it."""
    passed: list[Point] = []
    for _, widths in uniform_widths(space.family, space.config):
        student = Student(tuple(widths[axis[0]] for axis in space.axes))
        passed.append(Point(student, cost(student), kept(student)))
        if within(passed[-1].costs, budgets):
            return passed[-1], pareto(passed, next(iter(budgets)))
    raise unreachable(cost(space.teacher), passed[-1].costs, budgets)
