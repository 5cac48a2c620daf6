"""The search: the student that keeps most of the importance within all budgets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache

from edgediff.budgets.space import Space, Student
from edgediff.errors import BadInputError

Costs = Mapping[str, float]
"""Quantity → what a student costs: params, macs, latency_ms, memory_mb."""

PATIENCE = 3  # steps down that a repair may take for one step up


@dataclass(frozen=True)
class Point:
    """A student, what it costs, and the share of the importance that it keeps."""

    student: Student
    costs: Costs
    kept: float


def search(
    space: Space,
    kept: Callable[[Student], float],
    cost: Callable[[Student], Costs],
    budgets: Costs,
    on_start: Callable[[], None] = lambda: None,
) -> tuple[Point, list[Point]]:
    """Return the student found, and the Pareto points passed on the way, from the teacher down to it.

    Greedy, as NetAdapt is (Yang et al. 2018): of all students one step smaller, go to the one that loses the least
    importance for what it saves, until every budget is met. This from the teacher, and from it with one axis already
    narrower or one block already gone, as the cheapest first step is not always on the way to the best student. Then
    exchange: take a step up and as few down as it needs, as long as that keeps more.

    Args: kept: student → share of the importance in [0, 1]. cost: student → every quantity that `budgets` limits.
          on_start: called after every one of the `starts`.
    Raises: BadInputError, with the reachable range, when a budget is under the smallest student.
    """
    at = cache(lambda student: Point(student, cost(student), kept(student)))
    seen: list[Point] = []
    ends: list[Point] = []
    for start in starts(space):
        path = _descent(space, at(start), at, budgets)
        seen += path
        ends.append(path[-1])
        on_start()
    met = [point for point in ends if within(point.costs, budgets)]
    if not met:
        least = min(ends, key=lambda point: _overrun(point.costs, budgets))
        raise unreachable(at(space.teacher).costs, least.costs, budgets)
    here = max(met, key=lambda point: point.kept)
    while (better := _exchanged(space, here, at, budgets)) is not None:
        here = better
        seen.append(here)
    return here, pareto(seen, next(iter(budgets)))


def starts(space: Space) -> list[Student]:
    """Return where the search begins: the teacher, and all students that differ from it in one axis or one block."""
    narrower = [
        replace(space.teacher, widths=(*space.teacher.widths[:axis], width, *space.teacher.widths[axis + 1 :]))
        for axis, choices in enumerate(space.choices)
        for width in choices[:-1]
    ]
    fewer = [replace(space.teacher, removed=frozenset({block})) for block in space.blocks]
    return [space.teacher, *(student for student in (*narrower, *fewer) if space.exists(student))]


def _descent(space: Space, here: Point, at: Callable[[Student], Point], budgets: Costs) -> list[Point]:
    """Return the points from here down to the first within the budgets, or to where no step saves anything."""
    path = [here]
    while not within(here.costs, budgets):
        smaller = [at(student) for student in space.smaller(here.student)]
        saving = [point for point in smaller if _overrun(point.costs, budgets) < _overrun(here.costs, budgets)]
        if not saving:
            break
        here = _cheapest(here, saving, budgets)
        path.append(here)
    return path


def unreachable(largest: Costs, least: Costs, budgets: Costs) -> BadInputError:
    """Word a budget that no student can meet, with what the smallest one and the teacher cost."""
    over = next(name for name, budget in budgets.items() if least[name] > budget)
    word, unit, digits = WORDS[over]
    return BadInputError(
        f"no student of this teacher {word} {budgets[over]:,.{digits}f}{unit}",
        f"reachable: {least[over]:,.{digits}f}{unit} to {largest[over]:,.{digits}f}{unit}",
    )


WORDS = {
    "params": ("has", " parameters", 0),
    "macs": ("has", " MACs", 0),
    "latency_ms": ("takes", " ms a step", 2),
    "memory_mb": ("needs", " MB", 1),
}
"""Quantity → verb, unit and decimals of its sentence."""


def pareto(points: list[Point], quantity: str) -> list[Point]:
    """Return the points that no other one beats in both the quantity and the importance kept, cheapest last."""
    once = {point.student: point for point in points}
    ranked = sorted(once.values(), key=lambda point: (point.costs[quantity], -point.kept))
    best: list[Point] = []
    for point in ranked:
        if not best or point.kept > best[-1].kept:
            best.append(point)
    return best[::-1]


def within(costs: Costs, budgets: Costs) -> bool:
    """Return whether every budget is met."""
    return all(costs[name] <= budget for name, budget in budgets.items())


def _overrun(costs: Costs, budgets: Costs) -> float:
    """Return by how much the costs exceed the budgets, as the sum of shares; 0 when they are met."""
    return sum(max(0.0, costs[name] / budget - 1) for name, budget in budgets.items())


def _cheapest(here: Point, smaller: list[Point], budgets: Costs) -> Point:
    """Return the point that loses the least importance for the overrun that it saves."""

    def price(point: Point) -> float:
        return (here.kept - point.kept) / (_overrun(here.costs, budgets) - _overrun(point.costs, budgets))

    return min(smaller, key=price)


def _exchanged(space: Space, here: Point, at: Callable[[Student], Point], budgets: Costs) -> Point | None:
    """Return the best point within the budgets that is one step up and up to `PATIENCE` down; None: none keeps more."""
    best: Point | None = None
    for student in space.larger(here.student):
        point = at(student)
        for _ in range(PATIENCE):
            if within(point.costs, budgets):
                break
            saving = [
                other
                for other in map(at, space.smaller(point.student))
                if other.student != here.student and _overrun(other.costs, budgets) < _overrun(point.costs, budgets)
            ]
            if not saving:
                break
            point = _cheapest(point, saving, budgets)
        if within(point.costs, budgets) and point.kept > max(here.kept, best.kept if best else 0.0):
            best = point
    return best
