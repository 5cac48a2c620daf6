"""The conditional micro-teachers halved: `edgediff compress` with each of their recipes, and what came out.

    python benchmarks/micro_teachers.py --out runs                         # resumable: finished stages are skipped
    python benchmarks/micro_teachers.py --out runs --recipe fashion-dit-0.5

Figures go to benchmarks/results/micro-teachers.json, a recipe each, with the device and the whole recipe.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from edgediff import pipeline
from edgediff.artifacts import made, read_json, write_json
from edgediff.output import Output
from edgediff.recipe import Recipe, find, read
from edgediff.results import Report
from edgediff.run import Run

RECIPES = ("fashion-dit-0.5", "fashion-sd-0.5", "fashion-mmdit-0.5")
RESULTS = Path(__file__).parent / "results" / "micro-teachers.json"


def figures(report: Report) -> dict[str, Any]:
    return {
        "made": made(),
        "recipe": report.recipe,
        "costs": {role: cost.model_dump(mode="json") for role, cost in report.latency.costs.items()},
        "latency": [row.model_dump(mode="json") for row in report.latency.rows if row.status == "measured"],
        "quality": report.quality.model_dump(mode="json"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--recipe", choices=RECIPES, action="append", help="default: all of them")
    options = parser.parse_args()
    results = read_json(RESULTS) if RESULTS.exists() else {}
    for name in options.recipe or RECIPES:
        report = pipeline.compress(Run(options.out / name), read(find(name), (), Recipe), Output(), resume=True)
        if report is not None:
            results[name] = figures(report)
            write_json(RESULTS, results)


if __name__ == "__main__":
    main()
