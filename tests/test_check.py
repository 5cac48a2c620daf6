"""The gate: verdicts at, inside and beyond every limit, and what cannot be compared."""

import json
from xml.etree import ElementTree

import pytest

from edgediff.artifacts import write_json
from edgediff.check import Gate, check, judge, junit, write_baseline
from edgediff.errors import BadInputError, CorruptArtifactError, NotComparableError


@pytest.fixture
def files(tmp_path, a_report):
    """A report file and the baseline written from it; `change` edits the report's plain data."""
    report, baseline = tmp_path / "report.json", tmp_path / "baseline.json"
    write_json(report, a_report.model_dump(mode="json"))
    write_baseline(report, baseline)

    def change(edit):
        value = json.loads(report.read_text())
        edit(value)
        report.write_text(json.dumps(value))

    return report, baseline, change


def student(value):
    return value["quality"]["rows"][1]


def test_a_baseline_says_every_gate_with_its_allowance(files):
    gates = json.loads(files[1].read_text())["gates"]
    assert set(gates) == {
        *("params", "macs", "bytes", "engine_bytes/tensorrt_rtx", "speedup/onnxruntime/1"),
        *("frechet_distance", "kid_mean", "psnr_to_teacher", "ssim_to_teacher"),
    }
    assert gates["kid_mean"] == {"value": 0.5, "allowed_absolute": 0.1}
    assert all("allowed_relative" in gate for name, gate in gates.items() if name != "kid_mean")


@pytest.mark.parametrize(
    ("edit", "regressed"),
    [
        (lambda value: None, set()),
        (lambda value: student(value).update(frechet_distance=209.9), set()),
        (lambda value: student(value).update(frechet_distance=210.1), {"frechet_distance"}),
        (lambda value: student(value).update(kid_mean=0.61, psnr_to_teacher=18.9), {"kid_mean", "psnr_to_teacher"}),
        (lambda value: student(value).update(psnr_to_teacher=19.1), set()),
        (lambda value: student(value).update(ssim_to_teacher=None), {"ssim_to_teacher"}),
        (lambda value: value["latency"]["rows"][1].update(speedup=3.3), {"speedup/onnxruntime/1"}),
        (lambda value: value["latency"]["rows"][1].update(step_p50_ms=50.0), set()),
        (lambda value: value["latency"]["costs"]["student"].update(params=101), {"params"}),
        (lambda value: value.update(builds=[]), {"engine_bytes/tensorrt_rtx"}),
    ],
)
def test_regressions_are_found_and_only_they(files, quiet, edit, regressed):
    report, baseline, change = files
    change(edit)
    verdict = check(report, baseline, quiet)
    assert {finding.metric for finding in verdict.regressions} == regressed
    assert verdict.exit_code == (1 if regressed else 0)


@pytest.mark.parametrize(
    ("metric", "measured", "verdict"),
    [
        ("frechet_distance", 90, "improved"),
        ("frechet_distance", 110, "ok"),
        ("frechet_distance", 110.01, "regression"),
        ("frechet_distance", float("nan"), "regression"),
        ("psnr_to_teacher", 110, "improved"),
        ("psnr_to_teacher", 90, "ok"),
        ("psnr_to_teacher", 89.99, "regression"),
        ("psnr_to_teacher", None, "regression"),
    ],
)
def test_judging_one_metric(metric, measured, verdict):
    assert judge(metric, Gate(value=100, allowed_relative=0.1), measured).verdict == verdict


def test_a_negative_kid_may_rise_by_its_allowance():
    gate = Gate(value=-0.01, allowed_absolute=0.02)
    assert judge("kid_mean", gate, 0.009).verdict == "ok"
    assert judge("kid_mean", gate, 0.011).verdict == "regression"


def test_an_edited_allowance_holds(files, quiet):
    report, baseline, change = files
    change(lambda value: student(value).update(frechet_distance=290))
    value = json.loads(baseline.read_text())
    value["gates"]["frechet_distance"] = {"value": 200, "allowed_relative": 0.5}
    baseline.write_text(json.dumps(value))
    assert check(report, baseline, quiet).exit_code == 0


def test_another_quality_profile_cannot_be_compared(files, quiet):
    report, baseline, change = files
    change(lambda value: value["quality"]["profile"].update(num_inference_steps=50))
    with pytest.raises(NotComparableError, match="num_inference_steps 50, baseline 10") as caught:
        check(report, baseline, quiet)
    assert caught.value.exit_code == 3


def test_another_device_cannot_be_compared_unless_the_baseline_says_so(files, quiet):
    report, baseline, change = files
    change(lambda value: value["latency"]["profile"].update(device="cpu B"))
    with pytest.raises(NotComparableError, match="device cpu B, baseline cpu A"):
        check(report, baseline, quiet)
    value = json.loads(baseline.read_text())
    baseline.write_text(json.dumps({**value, "any_device": True}))
    assert check(report, baseline, quiet).exit_code == 0
    without = {name: gate for name, gate in value["gates"].items() if not name.startswith("speedup")}
    baseline.write_text(json.dumps({**value, "gates": without}))
    assert check(report, baseline, quiet).exit_code == 0


def test_an_unknown_metric_in_a_baseline(files, quiet):
    report, baseline, _ = files
    value = json.loads(baseline.read_text())
    value["gates"]["frechet_distanse"] = {"value": 1}
    baseline.write_text(json.dumps(value))
    with pytest.raises(BadInputError) as caught:
        check(report, baseline, quiet)
    assert "did you mean: frechet_distance" in caught.value.hint


def test_files_that_are_missing_or_broken(files, tmp_path, quiet):
    report, baseline, _ = files
    with pytest.raises(BadInputError, match="baseline not found"):
        check(report, tmp_path / "none.json", quiet)
    with pytest.raises(BadInputError, match="no report"):
        check(tmp_path / "none", baseline, quiet)
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(CorruptArtifactError):
        check(report, tmp_path / "broken.json", quiet)
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(BadInputError, match="not a baseline"):
        check(report, tmp_path / "other.json", quiet)
    with pytest.raises(CorruptArtifactError, match="not a report"):
        check(tmp_path / "other.json", baseline, quiet)


def test_junit_names_every_metric_and_every_failure(files, quiet):
    report, baseline, change = files
    change(lambda value: student(value).update(frechet_distance=400))
    suite = ElementTree.fromstring(junit(check(report, baseline, quiet)))
    assert (suite.get("tests"), suite.get("failures")) == ("9", "1")
    (failure,) = suite.iter("failure")
    assert failure.get("message") == "frechet_distance is 400, baseline 200, allowed at most 210"
