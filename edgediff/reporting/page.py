"""What the report's page and the model card show, worded and drawn: the variables of their templates."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from safetensors.numpy import load_file

from edgediff import model_folder
from edgediff.artifacts import MANIFEST, made, read_object
from edgediff.output import number
from edgediff.recipe import DistillConfig, Recipe, objective_words
from edgediff.reporting import budgets, figures
from edgediff.reporting.diagnosis_charts import diagnosis_charts
from edgediff.reporting.pictures import png, svg
from edgediff.reporting.tables import class_accuracy_table
from edgediff.reporting.training_charts import final_words, training_charts
from edgediff.reporting.usage import Usage, usage
from edgediff.results import DIRECTIONS, Latency, LatencyRow, Report
from edgediff.run import ROLES, Run
from edgediff.training import log as training_log

SEEDS_A_ROW, SEED_ROWS = 12, 2
ARROWS = {"lower": "↓", "higher": "↑"}


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
        "final": final_words(report.training.final),
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
        "curves": training_charts(log, recipe.distill),
        "diagnosis": diagnosis_charts(run.diagnosis, report.diagnosis, latent),
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
        "tags": ["edgediff", "pruned", *(["distilled"] if report.recipe["distill"]["kd"] else []), *learned],
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
            role: png(figures.grid(images[first:last], last - first), f"Images drawn by the {role}, {seeds}")
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
            "picture": svg(
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
    return {"search": search, "rows": budgets.rows(search), "passed": points, "picture": svg(chart, alt)}


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
