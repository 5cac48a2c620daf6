"""The gate: verdicts at, inside and beyond every limit, and what cannot be compared."""

import json
from xml.etree import ElementTree

import pytest

from edgediff.artifacts import write_json
from edgediff.check import Gate, check, judge, junit, write_baseline
from edgediff.errors import BadInputError, CorruptArtifactError, NotComparableError
from edgediff.output import Output


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
        *("params", "macs", "bytes", "engine_bytes/tensorrt_rtx", "speedup/onnxruntime/cpu/1"),
        *("frechet_distance", "kid_mean", "psnr_to_teacher", "ssim_to_teacher"),
    }
    assert gates["kid_mean"] == {"value": 0.5, "direction": "lower", "allowed_absolute": 0.1}
    assert gates["speedup/onnxruntime/cpu/1"] == {"value": 4.0, "direction": "higher", "allowed_relative": 0.15}
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
        (lambda value: value["latency"]["rows"][1].update(speedup=3.3), {"speedup/onnxruntime/cpu/1"}),
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
        ("psnr_to_teacher", 109.9, "ok"),
        ("frechet_distance", 90.1, "ok"),
        ("frechet_distance", float("-inf"), "regression"),
        ("speedup/onnxruntime/cpu/1", 89.0, "regression"),
        ("speedup/onnxruntime/cpu/1", 111.0, "improved"),
        ("engine_bytes/tensorrt_rtx", 111, "regression"),
    ],
)
def test_judging_one_metric(metric, measured, verdict):
    for gate in (Gate(value=100, allowed_relative=0.1), Gate(value=100, allowed_absolute=10)):
        assert judge(metric, gate, measured).verdict == verdict


@pytest.mark.parametrize(("measured", "verdict"), [(100, "ok"), (101, "regression"), (99, "improved")])
def test_without_allowance_only_the_value_itself_is_ok(measured, verdict):
    assert judge("params", Gate(value=100, allowed_relative=0), measured).verdict == verdict


def test_the_limit_itself_passes_however_it_was_rounded():
    """0.7 - 0.1 * 0.7 and 3 + 0.1 * 3 are not 0.63 and 3.3 in binary."""
    for value in range(1, 500):
        for share in (0.05, 0.1, 0.15):
            gate = Gate(value=value / 10, allowed_relative=share)
            assert judge("ssim_to_teacher", gate, float(f"{value / 10 * (1 - share):.12g}")).verdict == "ok"
            assert judge("frechet_distance", gate, float(f"{value / 10 * (1 + share):.12g}")).verdict == "ok"


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


def test_a_profile_that_no_gate_depends_on_may_differ(files, quiet):
    report, baseline, change = files
    change(lambda value: value["quality"]["profile"].update(num_inference_steps=50))
    value = json.loads(baseline.read_text())
    value["gates"] = {name: value["gates"][name] for name in ("params", "speedup/onnxruntime/cpu/1")}
    baseline.write_text(json.dumps(value))
    assert check(report, baseline, quiet).exit_code == 0


@pytest.mark.parametrize("metric", ["speedup/onnxruntime/cpu/1", "psnr_to_teacher", "ssim_to_teacher"])
def test_figures_beside_another_teacher_cannot_be_compared(files, quiet, metric):
    report, baseline, change = files
    change(lambda value: value.update(teacher="slow-ddpm"))
    value = json.loads(baseline.read_text())
    value["gates"] = {metric: value["gates"][metric]}
    baseline.write_text(json.dumps(value))
    with pytest.raises(NotComparableError, match="teacher slow-ddpm, baseline fashion-ddpm"):
        check(report, baseline, quiet)


def test_a_teacher_is_known_by_its_weights_and_not_by_its_name(files, quiet):
    report, baseline, change = files
    change(lambda value: value.update(teacher_sha256="a" * 64))
    write_baseline(report, baseline)
    change(lambda value: value.update(teacher="moved"))
    assert check(report, baseline, quiet).exit_code == 0
    change(lambda value: value.update(teacher_sha256="b" * 64))
    with pytest.raises(NotComparableError, match=r"teacher moved \(bbbbbbbb\), baseline fashion-ddpm \(aaaaaaaa\)"):
        check(report, baseline, quiet)
    change(lambda value: value.update(teacher="fashion-ddpm", teacher_sha256=None))  # of an earlier version
    assert check(report, baseline, quiet).exit_code == 0


def test_another_gpu_matters_to_gates_of_its_speed(files, quiet):
    report, baseline, change = files
    change(lambda value: value["latency"]["profile"].update(gpu="RTX A"))
    assert check(report, baseline, quiet).exit_code == 0  # nothing is gated that ran on it
    change(lambda value: next(row for row in value["latency"]["rows"] if row["speedup"] == 4).update(device="cuda"))
    write_baseline(report, baseline)
    change(lambda value: value["latency"]["profile"].update(gpu="RTX B"))
    with pytest.raises(NotComparableError, match="gpu RTX B, baseline RTX A"):
        check(report, baseline, quiet)
    value = json.loads(baseline.read_text())
    baseline.write_text(json.dumps({**value, "any_device": True}))
    assert check(report, baseline, quiet).exit_code == 0


def test_speedups_on_two_devices_are_two_gates(files, quiet):
    report, baseline, change = files

    def on_gpu(value):
        row = next(row for row in value["latency"]["rows"] if row["role"] == "student")
        value["latency"]["rows"].append({**row, "device": "cuda", "speedup": 9.0})

    change(on_gpu)
    write_baseline(report, baseline)
    gates = json.loads(baseline.read_text())["gates"]
    assert gates["speedup/onnxruntime/cpu/1"]["value"] == 4 and gates["speedup/onnxruntime/cuda/1"]["value"] == 9


def test_writing_again_takes_the_new_values_and_keeps_what_people_set(files, quiet):
    report, baseline, change = files
    value = json.loads(baseline.read_text())
    value["any_device"] = True
    value["gates"]["frechet_distance"] = {"value": 200, "allowed_absolute": 7}
    del value["gates"]["params"]
    baseline.write_text(json.dumps(value))
    change(lambda value: student(value).update(frechet_distance=150))
    written = write_baseline(report, baseline)
    assert written.any_device
    assert written.gates["frechet_distance"] == Gate(value=150, direction="lower", allowed_absolute=7)
    assert written.gates["params"] == Gate(value=100, direction="lower", allowed_relative=0)
    baseline.write_text("{")
    with pytest.raises(CorruptArtifactError):
        write_baseline(report, baseline)
    assert baseline.read_text() == "{"


@pytest.mark.parametrize(
    ("gate", "said"),
    [
        ('{"value": 200}', "exactly one of allowed_relative, allowed_absolute"),
        ('{"value": 200, "allowed_relative": 0.1, "allowed_absolute": 1}', "exactly one of"),
        ('{"value": 200, "allowed_relativ": 0.1}', "unknown key, did you mean: allowed_relative"),
        ('{"value": 200, "allowed_relative": -0.1}', "greater than or equal to 0"),
        ('{"value": 200, "allowed_relative": NaN}', "allowed_relative: "),
        ('{"value": 200, "allowed_absolute": Infinity}', "allowed_absolute: "),
        ('{"value": NaN, "allowed_relative": 0.1}', "value: "),
        ('{"allowed_relative": 0.1}', "value: "),
    ],
)
def test_a_gate_that_could_not_fail_is_refused(files, quiet, gate, said):
    report, baseline, _ = files
    value = json.loads(baseline.read_text())
    value["gates"] = {"frechet_distance": json.loads(gate)}
    baseline.write_text(json.dumps(value))
    with pytest.raises(BadInputError, match="not a baseline") as caught:
        check(report, baseline, quiet)
    assert "gates.frechet_distance" in caught.value.hint and said in caught.value.hint
    assert caught.value.exit_code == 2


def test_a_direction_edited_to_the_other_side_is_refused(files, quiet):
    report, baseline, _ = files
    value = json.loads(baseline.read_text())
    value["gates"]["frechet_distance"]["direction"] = "higher"
    baseline.write_text(json.dumps(value))
    with pytest.raises(BadInputError, match="frechet_distance is better when lower"):
        check(report, baseline, quiet)


def test_a_baseline_that_gates_nothing_is_refused(files, quiet):
    report, baseline, _ = files
    value = json.loads(baseline.read_text())
    baseline.write_text(json.dumps({**value, "gates": {}}))
    with pytest.raises(BadInputError, match="not a baseline"):
        check(report, baseline, quiet)


def test_a_report_of_another_schema_is_refused(files, quiet):
    report, baseline, change = files
    change(lambda value: value.update(schema_version=2))
    with pytest.raises(BadInputError, match="schema_version 2, not 1"):
        check(report, baseline, quiet)


def test_a_run_without_a_student_row_fails_every_quality_gate(files, quiet):
    report, baseline, change = files
    change(lambda value: value["quality"]["rows"].pop())
    verdict = check(report, baseline, quiet)
    assert {finding.metric for finding in verdict.regressions} == {
        *("frechet_distance", "kid_mean", "psnr_to_teacher", "ssim_to_teacher")
    }
    assert {finding.measured for finding in verdict.regressions} == {None}


def test_a_run_folder_stands_for_its_report(files, quiet, tmp_path):
    assert check(tmp_path, files[1], quiet).exit_code == 0


def test_the_verdict_is_data_with_its_exit_code(files, quiet):
    report, baseline, change = files
    change(lambda value: student(value).update(frechet_distance=float("nan")))
    value = check(report, baseline, quiet).model_dump(mode="json")
    assert value["exit_code"] == 1
    (finding,) = [row for row in value["findings"] if row["metric"] == "frechet_distance"]
    assert finding == {
        **{"metric": "frechet_distance", "baseline": 200, "measured": None, "limit": 210},
        "verdict": "regression",
    }
    json.dumps(value, allow_nan=False)


def test_people_get_a_table_and_a_sentence_for_each_regression(files, capsys):
    report, baseline, change = files
    change(lambda value: student(value).update(psnr_to_teacher=12.0))
    check(report, baseline, Output())
    out, err = capsys.readouterr()
    assert [column in out for column in ("metric", "baseline", "measured", "limit", "verdict")] == [True] * 5
    assert err == "regression: psnr_to_teacher is 12, baseline 20, allowed at least 19\n"


def test_an_unknown_metric_in_a_baseline(files, quiet):
    report, baseline, _ = files
    value = json.loads(baseline.read_text())
    value["gates"]["frechet_distanse"] = {"value": 1, "allowed_relative": 0}
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
    assert {case.get("name") for case in suite.iter("testcase")} == set(json.loads(baseline.read_text())["gates"])
    assert failure.get("message") == "frechet_distance is 400, baseline 200, allowed at most 210"
