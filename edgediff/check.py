"""The verb `check`: a run against a baseline, as a gate in CI.

A baseline is a JSON file that people may edit: for every gated metric its value and how much worse it may get, and what
the values were measured under. Latency is gated as `speedup` over the teacher, measured in the same interleaved rounds,
so that a busy machine, or a slower one of the same kind, is no regression. Ratios still differ between kinds of
processors, so a speedup from another device is not compared unless the baseline says `"any_device": true`, with
allowances to match: what a CI on shared runners needs. Quality figures do not depend on the device, but on their
profile and, where they compare with the teacher, on the teacher.

A gate must not pass by accident: a figure that the run no longer has is a regression, and a baseline without gates, or
with an allowance that is not a number, is refused.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal, Self
from xml.etree import ElementTree

from pydantic import BaseModel, ConfigDict, Field, ValidationError, computed_field, model_validator

from edgediff.artifacts import read_object, read_result, write_json
from edgediff.errors import BadInputError, CorruptArtifactError, NotComparableError, nearest
from edgediff.output import Output
from edgediff.results import DIRECTIONS, SCHEMA_VERSION, LatencyProfile, QualityProfile, Report
from edgediff.validation import problems

Direction = Literal["lower", "higher"]

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
METRICS = {*ALLOWED, "kid_mean"}
ON_DEVICE = {"speedup"}
BY_PROFILE = {"frechet_distance", "kid_mean", "psnr_to_teacher", "ssim_to_teacher"}
TO_TEACHER = {"speedup", "psnr_to_teacher", "ssim_to_teacher"}
ROUNDING = 1e-9  # share of the limit: a figure at the limit must not fail for how a product was rounded


class Gate(BaseModel):
    """One metric of a baseline; exactly one of the two allowances says how much worse is still fine."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    value: float
    direction: Direction | None = None  # which way is better, for the reader; the metric decides
    allowed_relative: float | None = Field(None, ge=0)  # share of abs(value)
    allowed_absolute: float | None = Field(None, ge=0)

    @model_validator(mode="after")
    def _one_allowance(self) -> Self:
        if (self.allowed_relative is None) == (self.allowed_absolute is None):
            raise ValueError("needs exactly one of allowed_relative, allowed_absolute")
        return self

    @property
    def allowed(self) -> float:
        """How much worse the metric may be, in its own unit."""
        if self.allowed_absolute is not None:
            return self.allowed_absolute
        return (self.allowed_relative or 0.0) * abs(self.value)


class Baseline(BaseModel):
    """The file that `--write-baseline` makes and people edit."""

    model_config = ConfigDict(extra="forbid")

    teacher: str  # by name
    teacher_sha256: str | None = None  # of its weights, which say more; null: an earlier version
    any_device: bool = False  # compare speedups across kinds of processors
    quality_profile: QualityProfile
    latency_profile: LatencyProfile
    gates: dict[str, Gate] = Field(min_length=1)


class Finding(BaseModel):
    """The verdict on one metric; `limit` is the worst value that still passes.

    `improved` means better by the whole allowance or more, so that noise is not praised; it suggests a new baseline.
    """

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

    @computed_field  # type: ignore[prop-decorator]
    @property
    def exit_code(self) -> int:
        """0 without regressions, 1 with."""
        return 1 if self.regressions else 0


def check(path: Path, baseline_path: Path, output: Output) -> Verdict:
    """Hold a run folder (or a report.json) against a baseline.

    Raises: BadInputError for files that are missing or name unknown metrics, and CorruptArtifactError for damaged ones
    (exit code 2); NotComparableError when teacher, profiles or devices differ (exit code 3).
    """
    report, baseline = read_report(path), read_baseline(baseline_path)
    _require_comparable(report, baseline)
    measured = measure(report)
    findings = [
        judge(name, gate, measured[name].value if name in measured else None) for name, gate in baseline.gates.items()
    ]
    verdict = Verdict(run=report.name, findings=findings)
    show(verdict, output)
    return verdict


def write_baseline(path: Path, baseline_path: Path) -> Baseline:
    """Write a baseline with the figures of a run; what people set in one that is already there, it keeps.

    Allowances of gates that still exist and `any_device` stay; new gates get the default allowances.
    Raises: what `read_report` raises; what `read_baseline` raises for a file that is there and is no baseline.
    """
    report = read_report(path)
    gates, any_device = measure(report), False
    if baseline_path.exists():
        before = read_baseline(baseline_path)
        any_device = before.any_device
        for name in gates.keys() & before.gates.keys():
            kept = before.gates[name].model_copy(update={"value": gates[name].value, "direction": direction(name)})
            gates[name] = kept
    baseline = Baseline(
        teacher=report.teacher,
        teacher_sha256=report.teacher_sha256,
        any_device=any_device,
        quality_profile=report.quality.profile,
        latency_profile=report.latency.profile,
        gates=gates,
    )
    write_json(baseline_path, baseline.model_dump(mode="json", exclude_none=True))
    return baseline


def measure(report: Report) -> dict[str, Gate]:
    """Return every figure of the student that can be gated, each with its default allowance, by name.

    Names: `engine_bytes/<backend>`, `speedup/<backend>/<device>/<batch size>`, otherwise the metric itself. KID may
    rise by twice its standard deviation, because its value lies around 0 for a good model and a share of that would
    gate noise. A figure that is not a finite number is left out, as one that was not measured.
    """
    values: dict[str, float | None] = {}
    if (cost := report.latency.costs.get("student")) is not None:
        values |= {"params": cost.params, "macs": cost.macs, "bytes": cost.bytes}
    values |= {f"engine_bytes/{build.backend}": build.bytes for build in report.builds}
    for row in report.latency.rows:
        if row.role == "student":
            values[f"speedup/{row.backend}/{row.device}/{row.batch_size}"] = row.speedup
    allowed_absolute: dict[str, float] = {}
    for quality in report.quality.rows:
        if quality.role == "student":
            values |= {name: getattr(quality, name) for name in sorted(BY_PROFILE)}
            allowed_absolute["kid_mean"] = 2 * quality.kid_std
    return {
        name: Gate(
            value=value,
            direction=direction(name),
            allowed_relative=ALLOWED.get(_metric(name)),
            allowed_absolute=allowed_absolute.get(name),
        )
        for name, value in values.items()
        if value is not None and math.isfinite(value)
    }


def judge(name: str, gate: Gate, measured: float | None) -> Finding:
    """Return the verdict on one metric; at the limit is still ok, and what is missing or not a number is not."""
    if measured is not None and not math.isfinite(measured):
        measured = None
    sign = 1.0 if direction(name) == "lower" else -1.0
    limit = gate.value + sign * gate.allowed
    verdict: Literal["ok", "improved", "regression"] = "ok"
    if measured is None or (sign * (measured - limit) > 0 and not math.isclose(measured, limit, rel_tol=ROUNDING)):
        verdict = "regression"
    else:
        gain = sign * (gate.value - measured)
        if gain > 0 and (gain >= gate.allowed or math.isclose(gain, gate.allowed, rel_tol=ROUNDING)):
            verdict = "improved"
    return Finding(metric=name, baseline=gate.value, measured=measured, limit=limit, verdict=verdict)


def direction(name: str) -> Direction:
    """Return which way is better for a gate's name; `engine_bytes` are bytes."""
    metric = _metric(name)
    return DIRECTIONS["bytes" if metric == "engine_bytes" else metric]


def read_report(path: Path) -> Report:
    """Read the report of a run folder, or a report file.

    Raises: BadInputError when there is none, or one of another version; CorruptArtifactError when it is damaged.
    """
    file = path / "report.json" if path.is_dir() else path
    if not file.is_file():
        raise BadInputError(f"no report to check: `{file}`", f"`edgediff report {path}` writes it")
    value = read_result(file)
    if value.get("schema_version", SCHEMA_VERSION) != SCHEMA_VERSION:
        raise BadInputError(
            f"report of another version: `{file}` has schema_version {value['schema_version']}, not {SCHEMA_VERSION}",
            "write it again with `edgediff report`",
        )
    try:
        return Report.model_validate(value)
    except ValidationError as error:
        found = "; ".join(problems(error, Report))
        raise CorruptArtifactError(f"not a report of this version: `{file}`", found) from error


def read_baseline(path: Path) -> Baseline:
    """Read a baseline file.

    Raises: BadInputError when it is missing, not a baseline, or names an unknown metric; CorruptArtifactError when it
    is not JSON.
    """
    if not path.is_file():
        raise BadInputError(f"baseline not found: `{path}`", "write one from a good run with `--write-baseline`")
    value = read_object(path)
    gates = value.get("gates")
    for name in gates if isinstance(gates, dict) else ():
        if _metric(name) not in METRICS:
            raise BadInputError(f"unknown metric in `{path}`: {name}", nearest(_metric(name), METRICS))
    try:
        baseline = Baseline.model_validate(value)
    except ValidationError as error:
        raise BadInputError(f"not a baseline: `{path}`", "; ".join(problems(error, Baseline))) from error
    for name, gate in baseline.gates.items():
        if gate.direction not in (None, direction(name)):
            raise BadInputError(
                f"wrong direction in `{path}`: {name} is better when {direction(name)}, not {gate.direction}",
                "the metric decides the direction; edit value and allowance only",
            )
    return baseline


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
            ElementTree.SubElement(case, "failure", type="regression", message=_sentence(finding))
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


def _metric(name: str) -> str:
    return name.split("/")[0]


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


def _require_comparable(report: Report, baseline: Baseline) -> None:
    gated = {_metric(name) for name in baseline.gates}
    differing: list[str] = []
    if gated & TO_TEACHER:
        differing += _another_teacher(report, baseline)
    if gated & BY_PROFILE:
        differing += _differing(report.quality.profile, baseline.quality_profile)
    if gated & ON_DEVICE:
        ignored = {"device", "gpu"} if baseline.any_device else set()
        if not any("/cuda/" in name for name in baseline.gates):
            ignored |= {"gpu"}
        differing += _differing(report.latency.profile, baseline.latency_profile, ignored)
    if differing:
        raise NotComparableError(
            f"run and baseline were measured differently: {'; '.join(differing)}",
            "measure the run as the baseline was, or write a new baseline with `--write-baseline`",
        )


def _another_teacher(report: Report, baseline: Baseline) -> list[str]:
    """Say which teachers they are where they are not one: by their weights, in earlier files by their names."""
    hashes = (report.teacher_sha256, baseline.teacher_sha256)
    if None in hashes:
        same = report.teacher == baseline.teacher
        return [] if same else [f"teacher {report.teacher}, baseline {baseline.teacher}"]
    named = [
        f"{name} ({str(sha256)[:8]})" for name, sha256 in zip((report.teacher, baseline.teacher), hashes, strict=True)
    ]
    return [] if hashes[0] == hashes[1] else [f"teacher {named[0]}, baseline {named[1]}"]


def _differing(run: BaseModel, baseline: BaseModel, ignored: set[str] | None = None) -> list[str]:
    a, b = run.model_dump(mode="json", exclude=ignored), baseline.model_dump(mode="json")
    return [f"{key} {a[key]}, baseline {b[key]}" for key in a if a[key] != b[key]]
