"""The verb `recipes check`: does every recipe resolve, and has its student the size that its paper prints?"""

from __future__ import annotations

from edgediff.errors import EdgeDiffError
from edgediff.metrics.cost import macs_by_operator, parameter_count
from edgediff.output import Output
from edgediff.plan import Outline, outlines
from edgediff.recipe import PublishedConfig, Recipe, check, packaged, read_yaml
from edgediff.results import PrintedCount, RecipeVerdict

UNITS = {"k": 1e3, "M": 1e6, "G": 1e9}


def check_recipes(output: Output) -> list[RecipeVerdict]:
    """Return the verdict on every recipe that comes along, from configs alone: no weights, no data, no network.

    A recipe fails when it is no valid recipe, when its teacher is unknown or cannot give the student it asks for, and
    when the student's size is not the printed one and the recipe does not say why.
    """
    found = []
    with output.progress("check recipes", len(packaged())) as progress:
        for name, (path, _) in packaged().items():
            try:
                found.append(_verdict(name, check(read_yaml(path), Recipe, f"`{path}`")))
            except EdgeDiffError as error:
                words = "; ".join(filter(None, (error.message, error.hint)))
                found.append(RecipeVerdict(name=name, status="invalid", reason=words))
            progress.advance()
    _show(found, output)
    return found


def printed(count: int, like: str) -> str:
    """Return a count in the unit and to the digits of one that a paper prints: 485_787_524, `485.8M` → `485.8M`."""
    number, unit = like[:-1], like[-1]
    digits = len(number.partition(".")[2])
    return f"{count / UNITS[unit]:.{digits}f}{unit}"


def _verdict(name: str, recipe: Recipe) -> RecipeVerdict:
    *_, what = outlines(recipe)
    params = parameter_count(what.family.build(what.student_config, "meta"))
    counts = _compared(what, params, recipe.published) if recipe.published else []
    unequal = any(count.student != count.published for count in counts)
    reason = recipe.published.differs if recipe.published and unequal else ""
    if not counts:
        status = "ok"
    elif not unequal:
        status = "equal"
    else:
        status = "explained" if reason else "differs"
    return RecipeVerdict.model_validate(
        {
            "name": name,
            "status": status,
            "reason": reason,
            "evidence": recipe.evidence,
            "source": recipe.published.source if recipe.published else "",
            "params": params,
            "counts": counts,
        }
    )


def _compared(what: Outline, params: int, published: PublishedConfig) -> list[PrintedCount]:
    counts = []
    if published.params is not None:
        own = what.family.original_params(what.student_config) if published.layout == "original" else params
        counts.append(PrintedCount(of="params", student=printed(own, published.params), published=published.params))
    if published.macs is not None:
        by_operator = macs_by_operator(what.family, what.student_config)
        own = sum(by_operator.get(operator, 0) for operator in published.macs_of)
        counts.append(PrintedCount(of="macs", student=printed(own, published.macs), published=published.macs))
    return counts


def _show(verdicts: list[RecipeVerdict], output: Output) -> None:
    def cell(verdict: RecipeVerdict, of: str) -> str:
        count = next((count for count in verdict.counts if count.of == of), None)
        if count is None:
            return ""
        return count.student if count.student == count.published else f"{count.student} ≠ {count.published}"

    output.table(
        "recipes, and their students' sizes as papers print them",
        ["recipe", "params", "printed", "MACs", "figures", "verdict"],
        [
            [
                verdict.name,
                f"{verdict.params / 1e6:,.2f}M" if verdict.params else "",
                cell(verdict, "params"),
                cell(verdict, "macs"),
                verdict.evidence or "none",
                verdict.status,
            ]
            for verdict in verdicts
        ],
    )
    for verdict in verdicts:
        if verdict.reason:
            output.say(f"{verdict.name}: {verdict.reason}")
