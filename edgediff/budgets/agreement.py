"""Searching until prediction and measurement agree: the student found is measured, and what that shows searched with.

A search finds the students that a profile takes for faster than they are, because these look best. Where the device of
the profile is at hand, one measurement of what was found says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from edgediff.budgets.choice import Choice
from edgediff.budgets.space import Student
from edgediff.output import Output, number

CLOSE = 0.03  # of the measured latency: nearer to each other than two measurements are
MOST = 5  # measurements


def agreed(
    find: Callable[[Mapping[Student, float]], Choice], measure: Callable[[Choice], float], output: Output
) -> Choice:
    """Return the first choice whose latency is predicted as it is measured, or the last one after `MOST` measurements.

    Args: find: students already measured, with the milliseconds of their steps → what the search then finds.
          measure: a choice → the milliseconds of its student's step.
    """
    measured: dict[Student, float] = {}
    while True:
        choice = find(measured)
        if choice.student in measured or len(measured) == MOST:
            return choice
        predicted = choice.record.found.costs["latency_ms"]
        ms = measured[choice.student] = measure(choice)
        widths = ", ".join(map(str, choice.student.widths))
        output.stage("prune", f"widths {widths}: {number(predicted, ' ms')} predicted, {number(ms, ' ms')} measured")
        if abs(predicted / ms - 1) <= CLOSE:
            return choice
