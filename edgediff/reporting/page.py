"""What the report's page and the model card show, worded and drawn: the variables of their templates."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from safetensors.numpy import load_file

from edgediff import diagnostics, model_folder
from edgediff.artifacts import MANIFEST, made, read_object
from edgediff.output import number
from edgediff.recipe import KD_LOSSES, TWO_PART_LOSSES, DistillConfig, PlaceConfig, Recipe, objective_words
from edgediff.reporting import budgets, figures
from edgediff.reporting.tables import class_accuracy_table
from edgediff.reporting.usage import Usage, usage
from edgediff.results import DIRECTIONS, Diagnosis, Latency, LatencyRow, Report
from edgediff.run import ROLES, Run
from edgediff.training import log as training_log

SEEDS_A_ROW, SEED_ROWS = 12, 2
ARROWS = {"lower": "↓", "higher": "↑"}


@dataclass(frozen=True)
class Wanted:
    """A chart of logged quantities, where they were logged."""

    title: str
    names: dict[str, str]  # quantity → label
    note: str  # what it is, and what to look for
    logarithmic: bool = False
    target: float | None = None  # where a perfect student's curve would lie


@dataclass(frozen=True)
class Picture:
    """An image of the page: data URI, the one for dark pages where it differs, and what it shows in words."""

    uri: str
    alt: str
    dark: str = ""


def context(run: Run, recipe: Recipe, report: Report) -> dict[str, Any]:
    """Return the variables of `report.html.j2` and `card.md.j2`."""
    log, stock = training_log.read(run.train_log), usage(run.student)
    profile, objective = report.quality.profile, objective_words(recipe.distill)
    latent = model_folder.autoencoder(run.student) is not None
    return {
        "report": report,
        "arrow": lambda metric: ARROWS[DIRECTIONS[metric]],
        "number": number,
        "short": short,
        "percent": lambda share: "–" if share is None else f"{share:.1%}",
        "asked": report.reached.asked,
        "objective": objective,
        "trained": f"{'distilled' if recipe.distill.kd else 'trained on the data alone'} ({objective})",
        "pruned_is": _pruned_is(recipe.distill),
        "final": _final(report.training.final),
        "settings": f"{profile.sampler}, {profile.num_inference_steps} steps, x0 "
        f"{'clipped' if profile.clip_sample else 'not clipped'}"
        f"{f', guidance {profile.guidance_scale:g}' if stock.conditional else ''}; seeds from {profile.first_seed}",
        "front_matter": yaml.safe_dump(_front_matter(report, stock, objective), sort_keys=False, allow_unicode=True),
        "usage": stock,
        "class_accuracy": class_accuracy_table(report.quality),
        "headline": _headline(report),
        "sample_rows": _sample_rows(run, profile.first_seed),
        "latency_panels": _latency_panels(report.latency),
        "budget": _budget(report),
        "latency_pairs": _latency_pairs(report.latency),
        "not_run": [row for row in report.latency.rows if row.status == "not run"],
        "curves": _curves(log, recipe.distill),
        "diagnosis": _diagnosis(run.diagnosis, report.diagnosis, latent),
        "latent": latent,
        "made": _made(run, report),
        "here": made(),
        "recipe_yaml": yaml.safe_dump(report.recipe, sort_keys=False, allow_unicode=True),
    }


def _pruned_is(config: DistillConfig) -> str:
    """Say what the pruned model is to the student."""
    if config.initial == "fresh":
        return "the model as it was cut from the teacher; the student has its shape, and began with random weights"
    read_as = f", taken to predict {config.student_prediction}" if config.student_prediction else ""
    return f"the model as it was cut from the teacher; the student began with its weights{read_as}"


def _final(means: Mapping[str, float]) -> str:
    """Word what the training ended with, without its settings."""
    return ", ".join(
        f"{name.replace('_', ' ').replace('grad norm', 'gradient norm').replace('norm.', 'norm of ')} "
        f"{number(value) if abs(value) >= 0.001 else format(value, '.2g')}"
        for name, value in means.items()
        if name not in ("learning_rate", "loss_scale")
    )


def short(count: float) -> str:
    """Return a count with three significant digits and k, M or G (powers of 1,000) behind it."""
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        # A count that rounds to 1,000 of one unit is 1 of the next.
        if abs(count) >= 0.9995 * size:
            return number(count / size, suffix)
    return f"{count:g}"


def _front_matter(report: Report, stock: Usage, objective: str) -> dict[str, Any]:
    learned = [words.replace(" ", "-") for words in objective.split(", ")]
    return {
        "library_name": "diffusers",
        "pipeline_tag": stock.task,
        "base_model": report.teacher,
        "tags": ["edgediff", "pruned", "distilled", *learned],
        "params": report.latency.costs["student"].params,
    }


def _headline(report: Report) -> list[dict[str, str]]:
    """Return the few figures that say it all: name, value and what stands beside it."""
    teacher, student = report.latency.costs["teacher"], report.latency.costs["student"]
    quality = {row.role: row for row in report.quality.rows}
    of_teacher, of_student = quality["teacher"], quality["student"]
    found = [
        {
            "name": name,
            "value": f"{short(before)} → {short(after)}",
            "beside": f"{after / before:.1%} of the teacher's, {number(before / after)}× fewer",
        }
        for name, before, after in (
            ("parameters", teacher.params, student.params),
            ("MACs a step", teacher.macs, student.macs),
        )
    ]
    found.append(
        {
            "name": "weights",
            "value": f"{number(teacher.bytes / 1e6)} → {number(student.bytes / 1e6, ' MB')}",
            "beside": "fp32; the engines' sizes are below" if report.builds else "fp32",
        }
    )
    ratios = [row for row in report.latency.rows if row.role == "student" and row.speedup is not None]
    if ratios:
        best = max(ratios, key=lambda row: row.speedup or 0.0)
        found.append(
            {
                "name": "best speedup",
                "value": f"{number(best.speedup)}×",
                "beside": f"{best.backend} on {best.device}, batch {best.batch_size}",
            }
        )
    found.append(
        {
            "name": f"Fréchet distance {ARROWS['lower']}",
            "value": number(of_student.frechet_distance),
            "beside": f"teacher {number(of_teacher.frechet_distance)}, "
            f"{report.quality.profile.floor_kind} (floor) {number(quality['floor'].frechet_distance)}",
        }
    )
    found.append(
        {
            "name": f"PSNR to teacher {ARROWS['higher']}",
            "value": number(of_student.psnr_to_teacher, " dB"),
            "beside": f"pruned, not trained: {number(quality['pruned'].psnr_to_teacher, ' dB')}",
        }
    )
    return found


def _sample_rows(run: Run, first_seed: int) -> list[dict[str, Any]]:
    """Return rows of seeds, each with one strip of images a role: one column is one seed."""
    samples = {role: load_file(run.samples(role))["samples"] for role in ROLES}
    count = min(SEEDS_A_ROW * SEED_ROWS, *(len(images) for images in samples.values()))
    rows = []
    for first in range(0, count, SEEDS_A_ROW):
        last = min(first + SEEDS_A_ROW, count)
        seeds = f"seeds {first_seed + first} to {first_seed + last - 1}"
        strips = {
            role: _png(figures.grid(images[first:last], last - first), f"Images drawn by the {role}, {seeds}")
            for role, images in samples.items()
        }
        rows.append({"seeds": seeds, "strips": strips, "share": (last - first) / min(SEEDS_A_ROW, count)})
    return rows


def _latency_panels(latency: Latency) -> list[dict[str, Any]]:
    panels: dict[tuple[str, str, int], list[LatencyRow]] = {}
    for row in latency.rows:
        if row.status == "measured":
            panels.setdefault((row.backend, row.device, row.batch_size), []).append(row)
    return [
        {
            "title": f"{backend} on {device}, batch {batch}",
            "picture": _svg(
                figures.latency_bars(rows),
                "Median time of a step: " + ", ".join(f"{row.role} {number(row.step_p50_ms, ' ms')}" for row in rows),
            ),
        }
        for (backend, device, batch), rows in panels.items()
    ]


def _budget(report: Report) -> dict[str, Any] | None:
    """Return the search's record as tables and a chart; nothing where no budget was given."""
    search = report.reached.search
    if search is None:
        return None
    quantity = next(iter(search.budgets))
    name, points = budgets.NAMES[quantity], budgets.passed(search)
    ends = f"{len(search.passed)} students from {budgets.figure(quantity, search.teacher[quantity])} down to "
    alt = f"Importance kept against {name}: {ends}{budgets.figure(quantity, search.passed[-1].costs[quantity])}"
    chart = figures.pareto(search, quantity, f"{name}{', predicted, ms' if quantity == 'latency_ms' else ''}")
    return {"search": search, "rows": budgets.rows(search), "passed": points, "picture": _svg(chart, alt)}


def _latency_pairs(latency: Latency) -> list[dict[str, str]]:
    """Return the card's latency lines: the student's step beside the teacher's where both were measured."""
    measured = {
        (row.backend, row.device, row.batch_size, row.role): row for row in latency.rows if row.status == "measured"
    }
    return [
        {
            "name": f"step, {backend} on {device}, batch {batch}",
            "teacher": number(measured[backend, device, batch, "teacher"].step_p50_ms, " ms"),
            "student": f"{number(row.step_p50_ms, ' ms')} ({number(row.speedup)}×)",
        }
        for (backend, device, batch, role), row in measured.items()
        if role == "student" and (backend, device, batch, "teacher") in measured
    ]


def _curves(log: Sequence[figures.LogLine], config: DistillConfig) -> list[dict[str, Any]]:
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
        found.append({"title": wanted.title, "note": wanted.note, "picture": _svg(chart, alt)})
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


def _diagnosis(folder: Path, diagnosis: Diagnosis | None, latent: bool) -> dict[str, Any] | None:
    """Return charts over the timesteps, error maps and pictures of single images; nothing without a diagnosis."""
    if diagnosis is None:
        return None
    pictures = diagnosis.pictures
    return {
        "charts": _by_timestep(diagnosis, latent),
        "maps": _error_maps(folder / diagnostics.MAP),
        "images": [
            {
                "name": f"Image {index:,} of {diagnosis.reference.name}",
                "picture": _png(
                    (folder / file).read_bytes(),
                    f"Image {index:,} at timesteps {', '.join(map(str, pictures.timesteps))}, "
                    f"from top to bottom: {', '.join(pictures.rows)}",
                ),
            }
            for index, file in zip(pictures.images, pictures.files, strict=True)
        ],
        "key": _error_key(pictures.low, pictures.high),
    }


def _by_timestep(diagnosis: Diagnosis, latent: bool) -> list[dict[str, Any]]:
    of_x0, values = ("RMSE, of latents", None) if latent else ("RMSE; dotted: the range of images", 2.0)
    wanted = [
        (f"Error of the prediction (MSE to the teacher's {diagnosis.prediction_type})", "mse", True, None),
        (f"What it does to x0 ({of_x0})", "x0_rmse", True, values),
        ("Slope by timestep (1: a perfect student)", "slope", False, 1.0),
        ("Intercept by timestep (0: a perfect student)", "intercept", False, 0.0),
    ]

    def of_both(key: str) -> dict[str, list[float]]:
        return {role: [getattr(error, key) for error in model.errors] for role, model in diagnosis.models.items()}

    timesteps = [error.timestep for error in diagnosis.models["student"].errors]
    charts = []
    for title, name, logarithmic, target in wanted:
        lines, spreads = of_both(name), None if logarithmic else of_both(f"{name}_std")
        chart = figures.by_timestep(timesteps, lines, spreads=spreads, logarithmic=logarithmic, target=target)
        ends = "; ".join(f"{role} from {number(line[0])} to {number(line[-1])}" for role, line in lines.items())
        alt = f"{title} over the timesteps {timesteps[0]} to {timesteps[-1]}: {ends}"
        charts.append({"title": title, "picture": _svg(chart, alt)})
    return charts


def _error_maps(path: Path) -> dict[str, Any]:
    """Return the maps by timestep and the key of their colours."""
    tensors = load_file(path)
    errors = tensors["squared_error"]
    low, high = figures.error_range(errors)
    maps = [
        {
            "timestep": int(timestep),
            "mean": f"{values.mean():.2g}",
            "picture": _png(
                figures.error_map(values, low, high),
                f"Squared error at timestep {timestep}: mean {values.mean():.2g}, at most {values.max():.2g}",
            ),
        }
        for timestep, values in zip(tensors["timesteps"], errors, strict=True)
    ]
    return {"maps": maps, "key": _error_key(low, high)}


def _error_key(low: float, high: float) -> dict[str, Any]:
    picture = _png(figures.error_key(low, high), f"Colours from {low:.2g}, dark, to {high:.2g}, bright, logarithmic")
    return {"picture": picture, "low": f"{low:.2g}", "high": f"{high:.2g}"}


def _made(run: Run, report: Report) -> list[dict[str, Any]]:
    """Return every artefact with when and where it was made and the sha256 of all that went in and came out."""
    folders = {"pruned": run.pruned, "student": run.student}
    folders |= {f"onnx/{role}": run.onnx(role) for role in ROLES}
    folders |= {f"engine/{build.backend}": run.engine(build.backend) for build in report.builds}
    if report.diagnosis is not None:
        folders["diagnosis"] = run.diagnosis
    described = {name: read_object(folder / MANIFEST) for name, folder in folders.items()}
    described |= {path.name: read_object(path) for path in (run.latency, run.quality)}
    return [
        {
            "name": name,
            "at": value["made"]["at"],
            "device": value["made"]["device"],
            "versions": _listed(value["made"]["versions"]),
            "inputs": value["inputs"],
            "files": {
                file: digest
                for file, digest in value.get("files", {}).items()
                if Path(file).suffix in (".safetensors", ".onnx", ".data", ".engine")
            },
        }
        for name, value in described.items()
    ]


def _listed(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _png(content: bytes, alt: str) -> Picture:
    return Picture(_uri("png", content), alt)


def _svg(chart: figures.Chart, alt: str) -> Picture:
    return Picture(_uri("svg+xml", chart.light), alt, _uri("svg+xml", chart.dark))


def _uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
