"""The verb `report`: what the stages left → report.json, report.html and the model card."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from edgediff import __version__, diagnostics, model_folder
from edgediff.artifacts import (
    MANIFEST,
    content_hash,
    digest,
    read_object,
    read_result,
    sha256,
    verify,
    without,
    write_result,
    write_text,
)
from edgediff.encoding import parts
from edgediff.errors import BadInputError, CorruptArtifactError
from edgediff.output import Output
from edgediff.recipe import PLACES, SPEED_ONLY, Recipe, differences
from edgediff.reporting import budgets
from edgediff.reporting.page import context
from edgediff.reporting.templates import template
from edgediff.results import Build, Diagnosis, Latency, Parity, Quality, Reached, Report, Result, TrainingSummary
from edgediff.run import ROLES, Run
from edgediff.teacher import resolve
from edgediff.validation import problems

AnyResult = TypeVar("AnyResult", bound=Result)
SETTINGS = {  # sections of the recipe, or parts of them, that a stage's figures are of
    "export": ("export",),
    "bench": ("benchmark", "evaluate", "build"),
    "eval": ("evaluate", "data"),
}


def report(run: Run, recipe: Recipe, output: Output) -> Report:
    """Write report.json, report.html (self-contained) and README.md into the run folder.

    Raises: BadInputError naming the first stage that has not been run, or whose result is of another model or other
    settings than the run holds now; CorruptArtifactError for a result that is not one.
    """
    _require_stages(run)
    weights = _weights(run)
    _require_one_recipe(run, recipe)
    _require_one_model(run, recipe, weights)
    reached = _part(Reached, run.pruned / MANIFEST, "reached")
    latency = _read(Latency, run.latency)
    result = Report(
        name=run.path.resolve().name,
        teacher=resolve(recipe.teacher).name,
        teacher_sha256=_teacher_sha256(recipe, weights["teacher"]),
        edgediff=__version__,
        recipe=recipe.model_dump(mode="json"),
        reached=reached,
        training=_part(TrainingSummary, run.student / MANIFEST, "training"),
        parity={role: _read(Parity, run.onnx(role) / "parity.json") for role in ROLES},
        builds=[_read(Build, run.engine(backend) / "build.json") for backend in run.built(recipe.build.backends)],
        latency=latency,
        budget=budgets.comparison(reached.search, latency) if reached.search else None,
        quality=_read(Quality, run.quality),
        diagnosis=_diagnosis(run, weights, output),
    )
    page = context(run, recipe, result)
    inputs = _inputs(run, recipe)
    if result.diagnosis is not None:
        inputs["diagnosis"] = content_hash(run.diagnosis)
    write_result(run.report, result.model_dump(mode="json"), stage="report", config={}, inputs=inputs)
    write_text(run.path / "report.html", template("report.html.j2").render(page))
    write_text(run.path / "README.md", template("card.md.j2").render(page))
    output.stage("report", f"`{run.path / 'report.html'}`")
    return result


def _require_stages(run: Run) -> None:
    needed = [
        ("prune", run.pruned / MANIFEST),
        ("distill", run.student / MANIFEST),
        ("distill", run.train_log),
        *(("export", run.onnx(role) / MANIFEST) for role in ROLES),
        ("bench", run.latency),
        ("eval", run.quality),
        *(("eval", run.samples(role)) for role in ROLES),
    ]
    for verb, path in needed:
        if not path.is_file():
            raise BadInputError(f"nothing to report yet, it lacks: `{path}`", f"run `edgediff {verb} {run.path}` first")


def _require_one_model(run: Run, recipe: Recipe, weights: Mapping[str, str]) -> None:
    """Refuse figures of a model that an earlier stage has replaced since: a report is about one student."""
    made_from = read_object(run.student / MANIFEST)["inputs"]
    exported = {role: content_hash(run.onnx(role)) for role in ROLES}
    current = [("distill", run.student, made_from["pruned"] == content_hash(run.pruned))]
    for role in ROLES:
        folder = run.onnx(role)
        current.append(("export", folder, read_object(folder / MANIFEST)["inputs"]["weights"] == weights[role]))
    for backend in run.built(recipe.build.backends):
        folder = run.engine(backend)
        current.append(("build", folder, read_object(folder / MANIFEST)["inputs"]["onnx"] == exported["student"]))
    models = {**weights, **{f"onnx/{role}": hashed for role, hashed in exported.items()}}
    engines = {f"engine/{backend}": content_hash(run.engine(backend)) for backend in run.built(recipe.build.backends)}
    current.append(("bench", run.latency, _is_of(read_object(run.latency)["inputs"], models | engines)))
    scored = read_object(run.quality)["inputs"]  # without graphs where it was scored before they were there
    current.append(("eval", run.quality, _is_of({**models, **scored}, models)))
    for verb, path, matches in current:
        if not matches:
            raise BadInputError(
                f"made from another model, graph or engine than the run holds now: `{path}`",
                f"run `edgediff {verb} {run.path}` again",
            )


def _is_of(measured: Mapping[str, str], now: Mapping[str, str]) -> bool:
    return all(measured.get(name) == hashed for name, hashed in now.items())


def _require_one_recipe(run: Run, recipe: Recipe) -> None:
    """Refuse figures that were measured under other settings than the recipe's, which stands beside them."""
    now = without(recipe.model_dump(mode="json"), (*PLACES, *SPEED_ONLY))
    made = [*(("export", run.onnx(role) / MANIFEST) for role in ROLES), ("bench", run.latency), ("eval", run.quality)]
    for verb, path in made:
        config = read_object(path)["config"]
        if not config.keys() >= set(SETTINGS[verb]):
            raise BadInputError(f"made by an earlier version: `{path}`", f"run `edgediff {verb} {run.path}` again")
        then = without({section: config[section] for section in SETTINGS[verb]}, (*PLACES, *SPEED_ONLY))
        found = differences(then, _likewise(now, then))
        if found:
            changes = " ".join(shlex.quote(f"{key}={json.dumps(_at(now, key))}") for key in found)
            raise BadInputError(
                f"made under other settings than the recipe's now, {next(iter(found.values()))}: `{path}`",
                f"run `edgediff {verb} {run.path} {changes}` first",
            )


def _likewise(value: Any, shape: Any) -> Any:
    """Return of plain data what stands at the keys of other plain data."""
    if not (isinstance(value, Mapping) and isinstance(shape, Mapping)):
        return value
    return {key: _likewise(value.get(key), inner) for key, inner in shape.items()}


def _at(values: Any, key: str) -> Any:
    """Return what stands at a dotted key of plain data."""
    return reduce(lambda inner, name: (inner or {}).get(name), key.split("."), values)


def _weights(run: Run) -> dict[str, str]:
    """Return what every role is now; the teacher is the one that was pruned, whoever else taught the student."""
    weights = {"teacher": read_object(run.pruned / MANIFEST)["inputs"]["teacher"]}
    return weights | {role: model_folder.fingerprint(folder) for role, folder in _students(run).items()}


def _teacher_sha256(recipe: Recipe, model: str) -> str:
    """Return one hash of what draws the teacher's images: its model, and the autoencoder that decodes its latents."""
    autoencoder = model_folder.autoencoder(resolve(recipe.teacher).folder)
    return model if autoencoder is None else digest([model, parts.fingerprint(autoencoder, model_folder.STEM)])


def _diagnosis(run: Run, weights: Mapping[str, str], output: Output) -> Diagnosis | None:
    """Read the diagnosis, which a report can do without: one of other weights is left out, and that is said."""
    folder = run.diagnosis
    if not (folder / MANIFEST).is_file():
        return None
    diagnosed = read_object(folder / MANIFEST)["inputs"]
    why = None
    if any(diagnosed[role] != weights[role] for role in ROLES):
        why = "of other weights than the run holds now"
    elif not (folder / diagnostics.MAP).is_file():
        why = "of an earlier version, without error maps"
    if why is not None:
        output.say(f"left out, {why}: `{folder}`; `edgediff diagnose {run.path}`")
        return None
    verify(folder)
    return _read(Diagnosis, folder / diagnostics.RESULT)


def _students(run: Run) -> dict[str, Path]:
    return {"pruned": run.pruned, "student": run.student}


def _inputs(run: Run, recipe: Recipe) -> dict[str, str]:
    folders = _students(run)
    folders |= {f"onnx/{role}": run.onnx(role) for role in ROLES}
    folders |= {f"engine/{backend}": run.engine(backend) for backend in run.built(recipe.build.backends)}
    files = {path.name: path for path in (run.train_log, run.latency, run.quality)}
    return {name: content_hash(folder) for name, folder in folders.items()} | {
        name: sha256(path) for name, path in files.items()
    }


def _read(model: type[AnyResult], path: Path) -> AnyResult:
    return _checked(model, read_result(path), path)


def _part(model: type[AnyResult], path: Path, key: str) -> AnyResult:
    return _checked(model, read_object(path).get(key, {}), path)


def _checked(model: type[AnyResult], value: Mapping[str, Any], path: Path) -> AnyResult:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise CorruptArtifactError(
            f"not a result of this version: `{path}`", f"{problems(error, model)[0]}; run its stage again"
        ) from error
