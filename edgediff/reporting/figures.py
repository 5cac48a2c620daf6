"""Figures as bytes: image grids as PNG, charts as SVG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from edgediff.results import Latency

COLOURS = {"teacher": "#5b6770", "pruned": "#d08c3f", "student": "#1f77b4"}
SMOOTHED = 50  # points of a curve that a reader can tell apart
GAP = 2  # pixels between the images of a grid


def grid(pixels: NDArray[np.uint8], columns: int) -> bytes:
    """Return images (N, C, H, W) uint8 as one PNG, row by row, at their own size; C is 1 or 3."""
    count, channels, height, width = pixels.shape
    rows = -(-count // columns)
    shape = (rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3)
    canvas = np.full(shape, 255, dtype=np.uint8)
    for index, image in enumerate(pixels):
        top, left = (index // columns) * (height + GAP), (index % columns) * (width + GAP)
        colour = np.broadcast_to(image, (3, height, width)) if channels == 1 else image
        canvas[top : top + height, left : left + width] = colour.transpose(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(canvas).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def smoothed(values: Sequence[float], points: int = SMOOTHED) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (positions, means): the values averaged over at most `points` equal stretches; positions from 1."""
    parts = np.array_split(np.asarray(values, dtype=np.float64), min(points, len(values)))
    ends = np.cumsum([len(part) for part in parts])
    centres = ends - np.array([len(part) for part in parts]) / 2 + 0.5
    return centres, np.array([part.mean() for part in parts])


def training_curves(log: Sequence[Mapping[str, float]]) -> bytes:
    """Return the loss terms (logarithmic) and, with distillation, the linear fit over the steps, as SVG."""
    has_fit = "slope" in log[0]
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    axes = figure.subplots(1, 2 if has_fit else 1, squeeze=False)[0]
    for name, label in (("diffusion", "diffusion"), ("coarse", "coarse"), ("fine", "fine"), ("loss", "total")):
        if name in log[0] and any(line[name] for line in log):
            axes[0].plot(*smoothed([line[name] for line in log]), label=label)
    axes[0].set(yscale="log", xlabel="training step", title="loss terms")
    axes[0].legend(frameon=False, fontsize=8)
    if has_fit:
        for name in ("slope", "intercept", "fine_weight"):
            axes[1].plot(*smoothed([line[name] for line in log]), label=name)
        axes[1].axhline(1, color="#999", linewidth=0.7, linestyle=":")
        axes[1].axhline(0, color="#999", linewidth=0.7, linestyle=":")
        axes[1].set(xlabel="training step", title="linear fit (1, 0 is a perfect student) and fine weight")
        axes[1].legend(frameon=False, fontsize=8)
    return _svg(figure)


def loss_curve(log: Sequence[Mapping[str, float]]) -> bytes:
    """Return the loss of a teacher's training over the steps, as SVG."""
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot(*smoothed([line["loss"] for line in log], 200), color=COLOURS["student"])
    axes.set(yscale="log", xlabel="training step", ylabel="mean squared error")
    return _svg(figure)


def latency_bars(latency: Latency) -> bytes:
    """Return p50 as bars with whiskers to p99, one panel a backend and batch size, as SVG."""
    measured = [row for row in latency.rows if row.status == "measured"]
    panels = list(dict.fromkeys((row.backend, row.device, row.batch_size) for row in measured))
    figure = Figure(figsize=(10, 0.45 + 2.2 * -(-len(panels) // 2)), layout="constrained")
    axes = figure.subplots(-(-len(panels) // 2), 2, squeeze=False).ravel()
    for axis, panel in zip(axes, panels, strict=False):
        rows = [row for row in measured if (row.backend, row.device, row.batch_size) == panel][::-1]
        p50 = np.array([row.step_p50_ms or 0.0 for row in rows])
        p99 = np.array([row.step_p99_ms or 0.0 for row in rows])
        axis.barh(
            [row.role for row in rows],
            p50,
            xerr=[np.zeros_like(p50), p99 - p50],
            color=[COLOURS[row.role] for row in rows],
            error_kw={"elinewidth": 1, "capsize": 3, "ecolor": "#333"},
        )
        for position, row in enumerate(rows):
            speedup = f" · {row.speedup:.1f}x" if row.speedup and row.role != "teacher" else ""
            axis.text(
                p99[position] + 0.02 * p99.max(), position, f"{p50[position]:.3g} ms{speedup}", va="center", fontsize=8
            )
        axis.set_xlim(0, p99.max() * 1.35)
        axis.set_title(f"{panel[0]} ({panel[1]}), batch {panel[2]}", fontsize=9, loc="left")
        axis.tick_params(labelsize=8)
    for axis in axes[len(panels) :]:
        axis.remove()
    return _svg(figure)


def error_maps(timesteps: NDArray[np.int64], squared_error: NDArray[np.float32]) -> bytes:
    """Return where the student's prediction differs from the teacher's, one map (H, W) a timestep, as SVG.

    The colours are logarithmic over four decades: errors at low noise are hundreds of times those at high noise.
    """
    count = len(timesteps)
    figure = Figure(figsize=(10, 2.1), layout="constrained")
    axes = figure.subplots(1, count, squeeze=False)[0]
    largest = float(squared_error.max()) or 1.0
    scale = LogNorm(vmin=largest / 1e4, vmax=largest)
    for axis, timestep, values in zip(axes, timesteps, squared_error, strict=True):
        image = axis.imshow(values.clip(scale.vmin), cmap="magma", norm=scale, interpolation="nearest")
        axis.set_title(f"t = {timestep}", fontsize=8)
        axis.set_xlabel(f"mean {values.mean():.2g}", fontsize=8)
        axis.set(xticks=[], yticks=[])
    figure.colorbar(image, ax=axes, shrink=0.8).ax.tick_params(labelsize=7)
    return _svg(figure)


def _svg(figure: Figure) -> bytes:
    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    # No date and a fixed salt: the same figures give the same bytes.
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "edgediff", "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
