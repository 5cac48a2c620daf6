"""Figures as bytes: images and maps as PNG at their own size, charts as SVG for light and for dark pages."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from numpy.typing import NDArray
from PIL import Image

from edgediff.results import LatencyRow, Search

SMOOTHED = 50  # points of a curve that a reader can tell apart; so many are shown as they are
STRETCH = 5  # values of more that one of them averages at least
RAW_POINTS = 400  # of the unsmoothed curve behind it; more would only make the file larger
GAP = 2  # pixels between the images of a grid
WIDE = 1000.0  # ratio of the ends of an axis from which powers of ten alone are labels enough
LEGEND_COLUMNS = 4
DECADES = 4  # the lowest colour of an error map stands for this many powers of ten below the largest error

LogLine = Mapping[str, float]


@dataclass(frozen=True)
class Theme:
    """The colours of a chart on one kind of page."""

    ink: str
    soft: str
    roles: Mapping[str, str]
    lines: tuple[str, ...]


LIGHT = Theme(
    ink="#1b2126",
    soft="#77838c",
    roles={"teacher": "#5b6770", "pruned": "#c17a26", "student": "#1f6fb2"},
    lines=("#1f6fb2", "#c17a26", "#2f8f5b", "#5b6770", "#8a4fa3", "#b5443c", "#1f8796", "#857017"),
)
DARK = Theme(
    ink="#e8ebed",
    soft="#8b98a2",
    roles={"teacher": "#9aa7b0", "pruned": "#e0a45c", "student": "#6db3e8"},
    lines=("#6db3e8", "#e0a45c", "#6fce9a", "#9aa7b0", "#c79ade", "#ec8b83", "#66cad9", "#d3ba5f"),
)


@dataclass(frozen=True)
class Chart:
    """One chart as SVG, drawn twice on a transparent ground."""

    light: bytes
    dark: bytes


def grid(pixels: NDArray[np.uint8], columns: int) -> bytes:
    """Return images (N, C, H, W) uint8 as one PNG, row by row, at their own size, with clear gaps; C is 1 or 3."""
    count, channels, height, width = pixels.shape
    rows = -(-count // columns)
    canvas = np.zeros((rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 4), dtype=np.uint8)
    for index, image in enumerate(pixels):
        top, left = (index // columns) * (height + GAP), (index % columns) * (width + GAP)
        colour = np.broadcast_to(image, (3, height, width)) if channels == 1 else image
        place = canvas[top : top + height, left : left + width]
        place[..., :3], place[..., 3] = colour.transpose(1, 2, 0), 255
    return _png(canvas)


def error_range(squared_error: NDArray[np.float32]) -> tuple[float, float]:
    """Return the errors (smallest, largest) that the ends of the maps' colour scale stand for, both above 0."""
    largest = float(squared_error.max()) or 1.0
    return max(float(squared_error.min()), largest * 10.0**-DECADES) * (1 - 1e-6), largest


def error_map(squared_error: NDArray[np.float32], low: float, high: float) -> bytes:
    """Return a map (H, W) of squared errors as PNG, one pixel an element."""
    return _png(error_colours(squared_error, low, high))


def error_colours(squared_error: NDArray[np.float32], low: float, high: float) -> NDArray[np.uint8]:
    """Return a map (H, W) of squared errors as colours (H, W, 3) on a logarithmic scale."""
    shares = LogNorm(low, high, clip=True)(np.maximum(squared_error, low))
    return matplotlib.colormaps["magma"](shares, bytes=True)[..., :3]


def error_key(low: float, high: float) -> bytes:
    """Return the colours of `error_map` from the smallest to the largest error, as a PNG of one row."""
    return error_map(np.geomspace(low, high, 256, dtype=np.float32)[None], low, high)


def smoothed(
    values: Sequence[float], points: int = SMOOTHED, positions: Sequence[int] | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (positions, values), both averaged over equal stretches, at most `points` of them; no more stay apart.

    Args: positions: of the values; from 1 when None.
    """
    count = len(values) if len(values) <= points else min(points, -(-len(values) // STRETCH))
    places = range(1, len(values) + 1) if positions is None else positions
    centres, means = (
        np.array([part.mean() for part in np.array_split(np.asarray(numbers, dtype=np.float64), count)])
        for numbers in (places, values)
    )
    return centres, means


def curves(
    log: Sequence[LogLine], names: Mapping[str, str], *, logarithmic: bool, target: float | None = None
) -> Chart:
    """Return logged quantities over the training steps: each one raw, and smoothed over it; few points joined.

    Args: names: quantity → its label; every one stands in some line of the log, which has one line a step.
          target: where a perfect student's curve would lie.
    """

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.subplots()
        for colour, (name, label) in zip(itertools.cycle(theme.lines), names.items(), strict=False):
            steps, values = zip(*((step, line[name]) for step, line in enumerate(log, 1) if name in line), strict=True)
            every, few = -(-len(values) // RAW_POINTS), len(values) <= SMOOTHED
            if not few:
                axes.plot(steps[::every], values[::every], color=colour, linewidth=0.6, alpha=0.35)
            shown, mark = smoothed(values, positions=steps), "o" if few else None
            axes.plot(*shown, color=colour, linewidth=1.8, marker=mark, markersize=3, label=label)
        _finish(axes, "training step", logarithmic=logarithmic, target=target)
        _legend(figure, len(names))

    return _chart(draw, width=5.2, height=2.9)


def by_timestep(
    timesteps: Sequence[int],
    lines: Mapping[str, Sequence[float]],
    *,
    spreads: Mapping[str, Sequence[float]] | None = None,
    logarithmic: bool,
    target: float | None = None,
) -> Chart:
    """Return a quantity of each role over the timesteps, as a line between points.

    Args: lines: role → value at each timestep. spreads: role → half the width of the band around it.
          target: where a perfect student's line would lie.
    """

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.subplots()
        for role, values in lines.items():
            axes.plot(timesteps, values, color=theme.roles[role], linewidth=1.8, marker="o", markersize=3, label=role)
            if spreads:
                middle, half = np.asarray(values), np.asarray(spreads[role])
                axes.fill_between(timesteps, middle - half, middle + half, color=theme.roles[role], alpha=0.18, lw=0)
        _finish(axes, "timestep (0: nearly clean)", logarithmic=logarithmic, target=target)
        _legend(figure, len(lines))

    return _chart(draw, width=5.2, height=2.9)


def _finish(axes: Axes, xlabel: str, *, logarithmic: bool, target: float | None) -> None:
    """Label the horizontal axis, draw the target, and keep a logarithmic scale's numbers plain and few."""
    axes.set_xlabel(xlabel)
    if target is not None:
        axes.axhline(target, color=axes.spines["left"].get_edgecolor(), linewidth=0.8, linestyle=":")
    if logarithmic:
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < WIDE else (1,)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())


def _legend(figure: Figure, lines: int) -> None:
    """Name the lines above the chart where there are several."""
    if lines > 1:
        figure.legend(frameon=False, loc="outside upper left", ncols=min(lines, LEGEND_COLUMNS))


def loss_curve(log: Sequence[LogLine]) -> bytes:
    """Return the loss of a teacher's training over the steps, as SVG on white."""

    def draw(figure: Figure, theme: Theme) -> None:
        figure.set_facecolor("white")
        axes = figure.subplots()
        axes.plot(*smoothed([line["loss"] for line in log], 200), color=theme.lines[0])
        axes.set(yscale="log", xlabel="training step", ylabel="mean squared error")

    return _svg(draw, LIGHT, width=7, height=3)


def latency_bars(rows: Sequence[LatencyRow]) -> Chart:
    """Return the measured rows of one backend and batch size: p50 as bars, whiskers with marks at p90 and p99."""
    p50, p90, p99 = (
        np.array([getattr(row, name) for row in rows], dtype=np.float64)
        for name in ("step_p50_ms", "step_p90_ms", "step_p99_ms")
    )

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.subplots()
        places = np.arange(len(rows))[::-1]
        axes.barh(places, p50, height=0.62, color=[theme.roles[row.role] for row in rows])
        axes.hlines(places, p50, p99, color=theme.ink, linewidth=1)
        for ends, height in ((p90, 0.16), (p99, 0.28)):
            axes.vlines(ends, places - height / 2, places + height / 2, color=theme.ink, linewidth=1)
        for place, row, middle, end in zip(places, rows, p50, p99, strict=True):
            speedup = f", {row.speedup:.1f}×" if row.speedup and row.role != "teacher" else ""
            axes.text(end + 0.02 * p99.max(), place, f"{middle:.3g} ms{speedup}", va="center")
        axes.set(xlim=(0, p99.max() * 1.45), yticks=places, yticklabels=[row.role for row in rows], xlabel="ms a step")
        axes.tick_params(axis="y", length=0)

    return _chart(draw, width=5.2, height=0.9 + 0.36 * len(rows))


def pareto(search: Search, quantity: str, label: str) -> Chart:
    """Return the importance kept against a quantity: the points that a search passed, its student and the budget."""

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.subplots()
        costs = [point.costs[quantity] for point in search.passed]
        kept = [100 * point.importance_kept for point in search.passed]
        axes.plot(costs, kept, color=theme.soft, linewidth=1, marker="o", markersize=3, label="passed")
        for role, cost, share in (
            ("teacher", search.teacher[quantity], 100.0),
            ("student", search.found.costs[quantity], 100 * search.found.importance_kept),
        ):
            axes.plot([cost], [share], color=theme.roles[role], linestyle="", marker="o", markersize=7, label=role)
        axes.axvline(search.budgets[quantity], color=theme.ink, linewidth=0.8, linestyle=":", label="budget")
        axes.set(xlabel=label, ylabel="importance kept, %", xlim=(0, None), ylim=(0, 105))
        _legend(figure, 4)

    return _chart(draw, width=5.2, height=2.9)


def _chart(draw: Callable[[Figure, Theme], None], width: float, height: float) -> Chart:
    return Chart(*(_svg(draw, theme, width, height) for theme in (LIGHT, DARK)))


def _svg(draw: Callable[[Figure, Theme], None], theme: Theme, width: float, height: float) -> bytes:
    """Return what `draw` puts on a figure of this size in inches.

    Text stays text, so that a page's figures are sharp and small; no date and a fixed salt: the same figures give the
    same bytes.
    """
    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "edgediff",
        "font.family": "sans-serif",
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.facecolor": "none",
        "figure.facecolor": "none",
        "axes.edgecolor": theme.soft,
        **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), theme.ink),
        **dict.fromkeys(("xtick.color", "ytick.color"), theme.soft),
    }
    buffer = io.BytesIO()
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure, theme)
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _png(canvas: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(canvas).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
