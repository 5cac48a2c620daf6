"""What the page and report.json say of a search within budgets: predicted against measured, and what it passed."""

from __future__ import annotations

from typing import Any

from edgediff.output import number
from edgediff.results import BudgetComparison, Latency, Search

NAMES = {"latency_ms": "latency of a step", "memory_mb": "peak memory", "params": "parameters", "macs": "MACs a step"}
UNITS = {"latency_ms": " ms", "memory_mb": " MB"}
ROWS = 12  # of the points passed that a table shows


def comparison(search: Search, latency: Latency) -> BudgetComparison | None:
    """Hold what a profile predicted against what was measured; None where no profile was asked.

    Latencies compare as shares of the teacher's, which was measured in turns with the student and is in the profile
    too: a machine that is busier today says nothing about the prediction.
    """
    check = latency.budget
    if check is None or not search.device:
        return None
    predicted = search.found.costs
    peaks = [
        row.peak_memory_mib
        for row in latency.rows
        if (row.role, row.backend, row.device, row.batch_size) == ("student", "onnxruntime", "cpu", 1)
    ]
    peak = peaks[0] * 2**20 / 1e6 if peaks and peaks[0] is not None else None
    reason = ""
    if (check.device, check.threads) != (search.device, search.threads):
        reason = (
            f"predicted for {search.device} with {search.threads} thread(s), measured on {check.device} with "
            f"{check.threads}: run the student's graph on its device to compare"
        )
    share = predicted["latency_ms"] / search.teacher["latency_ms"]
    measured = check.student_ms / check.teacher_ms
    return BudgetComparison(
        not_comparable=reason,
        predicted_share=share,
        measured_share=measured,
        latency_error=None if reason else share / measured - 1,
        memory_mb=peak,
        memory_error=None if reason or peak is None else predicted["memory_mb"] / peak - 1,
    )


def rows(search: Search) -> list[dict[str, str]]:
    """Return every quantity that is known of the student: budget, predicted, and the teacher's."""
    return [
        {
            "name": NAMES[name],
            "budget": figure(name, search.budgets[name]) if name in search.budgets else "–",
            "student": figure(name, cost),
            "teacher": figure(name, search.teacher[name]),
        }
        for name, cost in search.found.costs.items()
    ]


def passed(search: Search) -> dict[str, Any]:
    """Return the points as rows, spread over them where there are many, the student found last."""
    last = len(search.passed) - 1
    shown = sorted({round(i * last / (ROWS - 1)) for i in range(ROWS)}) if last >= ROWS else range(last + 1)
    points = [search.passed[i] for i in shown]
    if search.found not in points:
        points.append(search.found)
    return {
        "names": [NAMES[name] for name in search.found.costs],
        "rows": [
            {
                "widths": ", ".join(map(str, point.widths.values())),
                "removed": str(point.blocks_removed),
                "kept": f"{point.importance_kept:.1%}",
                "costs": [figure(name, cost) for name, cost in point.costs.items()],
                "found": point == search.found,
            }
            for point in points
        ],
        "count": len(search.passed),
    }


def figure(name: str, value: float) -> str:
    """Return a quantity with its unit."""
    return number(value, UNITS[name]) if name in UNITS else f"{value:,.0f}"
