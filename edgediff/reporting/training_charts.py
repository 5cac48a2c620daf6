"""What the report shows of a training: charts of what it logged, and what it ended with in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgediff.output import number
from edgediff.recipe import KD_LOSSES, TWO_PART_LOSSES, DistillConfig, PlaceConfig
from edgediff.reporting import figures
from edgediff.reporting.pictures import svg


@dataclass(frozen=True)
class Wanted:
    """A chart of logged quantities, where they were logged."""

    title: str
    names: dict[str, str]  # quantity → label
    note: str  # what it is, and what to look for
    logarithmic: bool = False
    target: float | None = None  # where a perfect student's curve would lie


def final_words(means: Mapping[str, float]) -> str:
    """Word what the training ended with, without its settings."""
    return ", ".join(
        f"{name.replace('_', ' ').replace('grad norm', 'gradient norm').replace('norm.', 'norm of ')} "
        f"{number(value) if abs(value) >= 0.001 else format(value, '.2g')}"
        for name, value in means.items()
        if name not in ("learning_rate", "loss_scale")
    )


def training_charts(log: Sequence[figures.LogLine], config: DistillConfig) -> list[dict[str, Any]]:
    """Return a chart for every group of quantities that this distillation logged; which ones depends on its kd."""
    found = []
    for wanted in _logged(config):
        shown = {name: label for name, label in wanted.names.items() if any(name in line for line in log)}
        if not shown:
            continue
        values = {name: [line[name] for line in log if name in line] for name in shown}
        logarithmic = wanted.logarithmic and all(min(of) > 0 for of in values.values())
        last = ", ".join(f"{label} {number(values[name][-1])}" for name, label in shown.items())
        chart = figures.curves(log, shown, logarithmic=logarithmic, target=wanted.target)
        alt = f"{wanted.title} over {len(log):,} training steps; at the end {last}"
        found.append({"title": wanted.title, "note": wanted.note, "picture": svg(chart, alt)})
    return found


def _logged(config: DistillConfig) -> list[Wanted]:
    """Return the charts of what a training's log may hold, from the whole to its parts."""
    kd, names = config.kd, ("diffusion", *KD_LOSSES)
    normalised = config.timestep_weighting == "normalised"
    per = "mean over an image's elements" if config.reduction == "mean" else "sum over an image's elements"
    wanted = [
        Wanted(
            "Loss and its terms",
            {"loss": "total", **{name: name for name in names}},
            f"With their weights, {per}. Look for: all of them fall; one that does not is not learned."
            + (" The total is normalised by timestep, the terms are not." if normalised else ""),
            logarithmic=True,
        ),
        Wanted(
            "Gradient norm",
            {"grad_norm": "gradient norm"},
            f"Of all that is trained, before it is clipped at {config.training.grad_clip:g}. Look for: it falls, and "
            "peaks are rare.",
            logarithmic=True,
        ),
        Wanted(
            "Gradient norms of the terms",
            {f"grad_norm.{name}": name for name in names},
            "At single steps, with the terms' weights, of the student. Look for: none is ten times another, else its "
            "weight is too large.",
            logarithmic=True,
        ),
    ]
    if set(kd) & set(TWO_PART_LOSSES):
        wanted += [
            Wanted(
                "Coarse and fine part of the distillation loss",
                {"coarse": "coarse", "fine": "fine"},
                "Before weights. Coarse: how far the fits are from slope 1 and intercept 0; fine: what is left of the "
                "error after the fit.",
                logarithmic=True,
            ),
            Wanted(
                "Weight of the fine part",
                {"fine_weight": "fine weight"},
                _of_fine_weight(config.place),
            ),
        ]
    *_, logged = [name for name in kd if name in TWO_PART_LOSSES] or [""]
    of = f"groups of {config.place.group_size} elements" if logged == "place" else "whole channels"
    fit = f"Of the teacher's prediction on the student's, over {of} of training images."
    return [
        *wanted,
        Wanted("Slope while training (1: a perfect student)", {"slope": "slope"}, fit, target=1.0),
        Wanted("Intercept while training (0: a perfect student)", {"intercept": "intercept"}, fit, target=0.0),
    ]


def _of_fine_weight(config: PlaceConfig) -> str:
    if config.terms == "coarse":
        return "Of no use here: the coarse term is alone."
    if config.fine_weight != "adaptive":
        return f"As asked: {config.fine_weight}."
    return (
        "1: the fine term is alone."
        if config.terms == "fine"
        else "1 less the mean coarse error, at least 0. Look for: it rises towards 1."
    )
