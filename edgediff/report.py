"""The verb `report`: what the stages left → report.json, report.html and the model card."""

from __future__ import annotations

import base64
import json
from typing import Any

import yaml
from safetensors.numpy import load_file

from edgediff import __version__
from edgediff.artifacts import MANIFEST, made, read_json, read_result, write_result, write_text
from edgediff.errors import BadInputError
from edgediff.output import Output, number
from edgediff.recipe import Recipe
from edgediff.reporting import figures
from edgediff.reporting.templates import template
from edgediff.results import DIRECTIONS, Build, Latency, Parity, Quality, Reached, Report, TrainingSummary
from edgediff.run import ROLES, Run
from edgediff.teacher import resolve

GRID_COLUMNS, GRID_IMAGES = 16, 32
ARROWS = {"lower": "↓", "higher": "↑"}


def report(run: Run, recipe: Recipe, output: Output) -> Report:
    """Write report.json, report.html (self-contained) and README.md into the run folder.

    Raises: BadInputError naming the first stage that has not been run.
    """
    _require_stages(run)
    result = Report(
        name=run.path.resolve().name,
        teacher=resolve(recipe.teacher).name,
        edgediff=__version__,
        recipe=recipe.model_dump(mode="json"),
        reached=Reached.model_validate(read_json(run.pruned / MANIFEST)["reached"]),
        training=TrainingSummary.model_validate(read_json(run.student / MANIFEST)["training"]),
        parity={role: Parity.model_validate(read_json(run.onnx(role) / "parity.json")) for role in ROLES},
        builds=[
            Build.model_validate(read_json(run.engine(backend) / "build.json"))
            for backend in recipe.build.backends
            if (run.engine(backend) / MANIFEST).exists()
        ],
        latency=Latency.model_validate(read_result(run.latency)),
        quality=Quality.model_validate(read_result(run.quality)),
    )
    inputs = {
        **{f"student/{name}": digest for name, digest in read_json(run.student / MANIFEST)["files"].items()},
        **{f"onnx/{name}": digest for name, digest in read_json(run.onnx("student") / MANIFEST)["files"].items()},
    }
    context = _context(run, recipe, result)
    write_result(run.report, result.model_dump(mode="json"), stage="report", config={}, inputs=inputs)
    write_text(run.path / "report.html", template("report.html.j2").render(context))
    write_text(run.path / "README.md", template("card.md.j2").render(context))
    output.stage("report", f"`{run.path / 'report.html'}`")
    return result


def _require_stages(run: Run) -> None:
    needed = {
        "prune": run.pruned / MANIFEST,
        "distill": run.student / MANIFEST,
        "export": run.onnx("student") / MANIFEST,
        "bench": run.latency,
        "eval": run.quality,
    }
    for verb, path in needed.items():
        if not path.exists():
            raise BadInputError(f"nothing to report yet, it lacks: `{path}`", f"run `edgediff {verb} {run.path}` first")


def _context(run: Run, recipe: Recipe, result: Report) -> dict[str, Any]:
    log = [json.loads(line) for line in run.train_log.read_text(encoding="utf-8").splitlines()]
    maps = load_file(run.error_map)
    profile = result.quality.profile
    return {
        "report": result,
        "arrow": lambda metric: ARROWS[DIRECTIONS[metric]],
        "number": number,
        "percent": lambda share: "–" if share is None else f"{share:.1%}",
        "asked": ", ".join(f"{name} {value:g}" for name, value in result.reached.requested.items()),
        "settings": f"{profile.sampler}, {profile.num_inference_steps} steps, x0 "
        f"{'clipped' if profile.clip_sample else 'not clipped'}; seeds from {profile.first_seed}",
        "headline": _headline(result),
        "latency_pairs": _latency_pairs(result.latency),
        "samples": [
            {
                "role": role,
                "uri": _uri("png", figures.grid(load_file(run.samples(role))["samples"][:GRID_IMAGES], GRID_COLUMNS)),
            }
            for role in ROLES
        ],
        "latency_chart": _uri("svg+xml", figures.latency_bars(result.latency)),
        "curves": _uri("svg+xml", figures.training_curves(log)),
        "error_maps": _uri("svg+xml", figures.error_maps(maps["timesteps"], maps["squared_error"])),
        "provenance": _provenance(run),
        "recipe_yaml": yaml.safe_dump(result.recipe, sort_keys=False),
    }


def _headline(result: Report) -> list[dict[str, str]]:
    teacher, student = result.latency.costs["teacher"], result.latency.costs["student"]
    quality = {row.role: row for row in result.quality.rows}
    fastest = max(
        (row for row in result.latency.rows if row.role == "student" and row.speedup), key=lambda row: row.speedup or 0
    )
    return [
        {
            "name": "parameters",
            "value": f"{student.params / teacher.params:.1%}",
            "beside": f"{student.params:,} of {teacher.params:,}",
        },
        {
            "name": "MACs",
            "value": f"{student.macs / teacher.macs:.1%}",
            "beside": f"{student.macs / 1e6:,.1f}M of {teacher.macs / 1e6:,.1f}M",
        },
        {
            "name": "speedup",
            "value": f"{number(fastest.speedup)}×",
            "beside": f"{fastest.backend}, batch {fastest.batch_size}",
        },
        {
            "name": "Fréchet distance",
            "value": number(quality["student"].frechet_distance),
            "beside": f"teacher {number(quality['teacher'].frechet_distance)}, "
            f"floor {number(quality['floor'].frechet_distance)}",
        },
        {
            "name": "PSNR to teacher",
            "value": number(quality["student"].psnr_to_teacher, " dB"),
            "beside": f"before distillation {number(quality['pruned'].psnr_to_teacher, ' dB')}",
        },
    ]


def _latency_pairs(latency: Latency) -> list[dict[str, str]]:
    measured = {
        (row.backend, row.device, row.batch_size, row.role): row.step_p50_ms
        for row in latency.rows
        if row.status == "measured"
    }
    places = dict.fromkeys(key[:3] for key in measured)
    return [
        {
            "name": f"step, {backend} {device}, batch {batch}",
            "teacher": number(measured[backend, device, batch, "teacher"], " ms"),
            "student": number(measured[backend, device, batch, "student"], " ms"),
        }
        for backend, device, batch in places
        if (backend, device, batch, "teacher") in measured and (backend, device, batch, "student") in measured
    ]


def _provenance(run: Run) -> dict[str, str]:
    here = made()
    weights = {
        role: read_json(folder / MANIFEST)["files"]["unet/diffusion_pytorch_model.safetensors"]
        for role, folder in (("pruned", run.pruned), ("student", run.student))
    }
    return {
        "report made": here["at"],
        "machine": f"{here['device']}, {here['system']}",
        "versions": ", ".join(f"{name} {version}" for name, version in here["versions"].items()),
        "teacher weights": read_json(run.student / MANIFEST)["inputs"]["teacher"],
        "training images": read_json(run.student / MANIFEST)["inputs"]["images"],
        **{f"{role} weights": digest for role, digest in weights.items()},
    }


def _uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
