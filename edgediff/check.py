"""The verb `check`: a run against a baseline, as a gate in CI.

A baseline is a JSON file that people may edit: for every gated metric its value and how much worse it may get, and the
profiles under which the values were measured. Latency is gated as `speedup` over the teacher, measured in the same
interleaved rounds, so that a busy or slower machine of the same kind is no regression. Ratios still differ between
kinds of processors, so a speedup from another device is not compared unless the baseline says `"any_device": true`,
with tolerances to match; quality figures do not depend on the device and need the same quality profile only.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgediff.artifacts import read_json, write_json
from edgediff.errors import BadInputError, CorruptArtifactError, NotComparableError, nearest
from edgediff.output import Output
from edgediff.results import DIRECTIONS, LatencyProfile, QualityProfile, Report

ALLOWED = {
    "params": 0.0,
    "macs": 0.0,
    "bytes": 0.0,
    "engine_bytes": 0.10,
    "speedup": 0.15,
    "frechet_distance": 0.05,
    "psnr_to_teacher": 0.05,
    "ssim_to_teacher": 0.05,
}
"""Default share of the value by which a metric may be worse; KID's allowance is absolute, see `measure`."""
MEASURED_ON_DEVICE = "speedup"


class Gate(BaseModel):
    """One metric of a baseline; exactly one of the two allowances holds, and says how much worse is still fine."""

    model_config = ConfigDict(extra="forbid")

    value: float
    allowed_relative: float | None = Field(None, ge=0)  # share of abs(value)
    allowed_absolute: float | None = Field(None, ge=0)


class Baseline(BaseModel):
    """The file that `--write-baseline` makes and people edit."""

    model_config = ConfigDict(extra="forbid")

    any_device: bool = False  # compare speedups across kinds of processors
    quality_profile: QualityProfile
    latency_profile: LatencyProfile
    gates: dict[str, Gate]


class Finding(BaseModel):
    """The verdict on one metric; `limit` is the worst value that still passes."""

    metric: str
    baseline: float
    measured: float | None  # null: the run does not have it
    limit: float
    verdict: Literal["ok", "improved", "regression"]


class Verdict(BaseModel):
    """What a check found, over all gates."""

    run: str
    findings: list[Finding]

    @property
    def regressions(self) -> list[Finding]:
        """The findings that fail the check."""
        return [finding for finding in self.findings if finding.verdict == "regression"]

    @property
    def exit_code(self) -> int:
        """0 without regressions, 1 with."""
        return 1 if self.regressions else 0


def check(path: Path, baseline_path: Path, output: Output) -> Verdict:
    """Hold a run folder (or a report.json) against a baseline.

    A metric that the baseline gates and the run no longer has is a regression: a figure must not pass by vanishing.
    Raises: BadInputError for files that are missing, damaged or name unknown metrics; NotComparableError when the
    profiles or devices differ.
    """
    report, baseline = read_report(path), read_baseline(baseline_path)
    measured = measure(report)
    _check_names(baseline, baseline_path)
    _check_comparable(report, baseline)
    findings = [judge(name, gate, measured[name].value if name in measured else None)
                for name, gate in baseline.gates.items()]  # fmt: skip
    verdict = Verdict(run=report.name, findings=findings)
    show(verdict, output)
    return verdict


def write_baseline(path: Path, baseline_path: Path) -> Baseline:
    """Write a baseline with the figures of a run and the default allowances."""
    report = read_report(path)
    baseline = Baseline(
        quality_profile=report.quality.profile, latency_profile=report.latency.profile, gates=measure(report)
    )
    write_json(baseline_path, baseline.model_dump(mode="json", exclude_none=True))
    return baseline


def measure(report: Report) -> dict[str, Gate]:
    """Return every gated figure of the student, each with its default allowance, by name.

    Names: the metric, or metric/backend/batch for what depends on them. KID may rise by twice its standard deviation,
    because its value lies around 0 for a good model and a share of that would gate noise.
    """
    cost = report.latency.costs["student"]
    gates = {name: _relative(name, getattr(cost, name)) for name in ("params", "macs", "bytes")}
    for build in report.builds:
        gates[f"engine_bytes/{build.backend}"] = _relative("engine_bytes", build.bytes)
    for row in report.latency.rows:
        if row.role == "student" and row.speedup is not None:
            gates[f"speedup/{row.backend}/{row.batch_size}"] = _relative("speedup", row.speedup)
    (quality,) = [row for row in report.quality.rows if row.role == "student"]
    gates["frechet_distance"] = _relative("frechet_distance", quality.frechet_distance)
    gates["kid_mean"] = Gate(value=quality.kid_mean, allowed_absolute=2 * quality.kid_std)
    for name in ("psnr_to_teacher", "ssim_to_teacher"):
        value = getattr(quality, name)
        if value is not None:
            gates[name] = _relative(name, value)
    return gates


def judge(name: str, gate: Gate, measured: float | None) -> Finding:
    """Return the verdict on one metric; at the limit is still ok."""
    sign = 1.0 if direction(name) == "lower" else -1.0
    relative = (gate.allowed_relative or 0.0) * abs(gate.value)
    limit = gate.value + sign * (relative + (gate.allowed_absolute or 0.0))
    if measured is None or not math.isfinite(measured) or sign * (measured - limit) > 0:
        verdict: Literal["ok", "improved", "regression"] = "regression"
    else:
        verdict = "improved" if sign * (measured - gate.value) < 0 else "ok"
    return Finding(metric=name, baseline=gate.value, measured=measured, limit=limit, verdict=verdict)


def direction(name: str) -> Literal["lower", "higher"]:
    """Return which way is better for a gate's name; `engine_bytes` are bytes."""
    metric = name.split("/")[0]
    return DIRECTIONS["bytes" if metric == "engine_bytes" else metric]


def read_report(path: Path) -> Report:
    """Read the report of a run folder, or a report file.

    Raises: BadInputError when there is none; CorruptArtifactError when it is not one.
    """
    file = path / "report.json" if path.is_dir() else path
    if not file.is_file():
        raise BadInputError(f"no report to check: `{file}`", f"run `edgediff report {path}` first")
    value = read_json(file)
    known = {key: value[key] for key in Report.model_fields if key in value} if isinstance(value, dict) else {}
    try:
        return Report.model_validate(known)
    except ValidationError as error:
        raise CorruptArtifactError(f"not a report of this version: `{file}`", _first(error)) from error


def read_baseline(path: Path) -> Baseline:
    """Read a baseline file.

    Raises: BadInputError when it is missing or not a baseline; CorruptArtifactError when it is not JSON.
    """
    if not path.is_file():
        raise BadInputError(f"baseline not found: `{path}`", "write one from a good run with `--write-baseline`")
    try:
        return Baseline.model_validate(read_json(path))
    except ValidationError as error:
        raise BadInputError(f"not a baseline: `{path}`", _first(error)) from error


def junit(verdict: Verdict) -> str:
    """Return the verdict as JUnit XML, one test case a metric, for CI systems that show it."""
    suite = ElementTree.Element(
        "testsuite",
        name=f"edgediff check {verdict.run}",
        tests=str(len(verdict.findings)),
        failures=str(len(verdict.regressions)),
    )
    for finding in verdict.findings:
        case = ElementTree.SubElement(suite, "testcase", classname="edgediff.check", name=finding.metric)
        if finding.verdict == "regression":
            ElementTree.SubElement(case, "failure", message=_sentence(finding))
    ElementTree.indent(suite)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(suite, encoding="unicode") + "\n"


def show(verdict: Verdict, output: Output) -> None:
    """Show the verdict as a table, and every regression as a sentence."""
    rows = [
        [finding.metric, _figure(finding.baseline), _figure(finding.measured), _figure(finding.limit), finding.verdict]
        for finding in verdict.findings
    ]
    output.table(f"check: {verdict.run}", ["metric", "baseline", "measured", "limit", "verdict"], rows)
    for finding in verdict.regressions:
        output.say(f"regression: {_sentence(finding)}")


def _relative(metric: str, value: float) -> Gate:
    return Gate(value=value, allowed_relative=ALLOWED[metric])


def _sentence(finding: Finding) -> str:
    bound = "at most" if direction(finding.metric) == "lower" else "at least"
    return (
        f"{finding.metric} is {_figure(finding.measured)}, baseline {_figure(finding.baseline)}, "
        f"allowed {bound} {_figure(finding.limit)}"
    )


def _figure(value: float | None) -> str:
    if value is None:
        return "missing"
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) >= 100 else f"{value:.4g}"


def _check_names(baseline: Baseline, path: Path) -> None:
    known = {*ALLOWED, "kid_mean"}
    for name in baseline.gates:
        if name.split("/")[0] not in known:
            raise BadInputError(f"unknown metric in `{path}`: {name}", nearest(name.split("/")[0], known))


def _check_comparable(report: Report, baseline: Baseline) -> None:
    differing = _differing(report.quality.profile, baseline.quality_profile, set())
    if any(name.split("/")[0] == MEASURED_ON_DEVICE for name in baseline.gates):
        ignored = {"device"} if baseline.any_device else set()
        differing += _differing(report.latency.profile, baseline.latency_profile, ignored)
    if differing:
        raise NotComparableError(
            f"run and baseline were measured differently: {'; '.join(differing)}",
            "measure the run under the baseline's profile, or write a new baseline with `--write-baseline`",
        )


def _differing(run: BaseModel, baseline: BaseModel, ignored: set[str]) -> list[str]:
    a, b = run.model_dump(mode="json"), baseline.model_dump(mode="json")
    return [f"{key} {a[key]}, baseline {b[key]}" for key in a if key not in ignored and a[key] != b[key]]


def _first(error: ValidationError) -> str:
    problem = error.errors()[0]
    return f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}"
