"""`compress` from teacher to report on a small teacher, with a real engine; every check here reads one finished run."""

import html.parser
import json

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from edgediff import check as gate
from edgediff import diagnostics, pipeline
from edgediff.artifacts import read_json, read_result, verify
from edgediff.benchmark import benchmark, rotated, time_side_by_side
from edgediff.diagnose import diagnose
from edgediff.errors import BadInputError, CorruptArtifactError, StageFailedError
from edgediff.evaluate import evaluate
from edgediff.recipe import Recipe, check, dump
from edgediff.report import report
from edgediff.results import DIRECTIONS, Latency, Quality, Report
from edgediff.run import ROLES, Run


@pytest.fixture(scope="module")
def recipe(small_recipe, photos):
    return small_recipe(data={"name": str(photos)}, build={"backends": ["tensorrt_rtx"], "max_batch": 2})


@pytest.fixture(scope="module")
def run(recipe, tmp_path_factory, quiet):
    run = Run(tmp_path_factory.mktemp("runs") / "line")
    pipeline.compress(run, recipe, quiet)
    return run


@pytest.fixture(scope="module")
def latency(run):
    return Latency.model_validate(read_result(run.latency))


@pytest.fixture(scope="module")
def quality(run):
    return Quality.model_validate(read_result(run.quality))


def test_every_artefact_is_there_and_whole(run):
    for folder in (run.pruned, run.student, run.engine("tensorrt_rtx"), *(run.onnx(role) for role in ROLES)):
        verify(folder)
    for path in (run.recipe, run.train_log, run.latency, run.quality, run.report, run.path / "README.md"):
        assert path.is_file()
    assert check(yaml.safe_load(run.recipe.read_text()), Recipe) == check(yaml.safe_load(dump_of(run)), Recipe)


def dump_of(run):
    return dump(Recipe.model_validate(read_json(run.report)["recipe"]))


def test_the_student_draws_images_where_edgediff_cannot_be_imported(run, without_edgediff):
    drawn = without_edgediff(run.student, "pipeline(num_inference_steps=2, output_type='np').images.shape")
    assert drawn == "(1, 28, 28, 1)"


def test_a_second_compress_changes_nothing(run, recipe, quiet):
    files = [path for path in run.path.rglob("*") if path.is_file()]
    kept = {path: path.stat().st_mtime_ns for path in files if "report" not in path.name and path.parent != run.path}
    pipeline.compress(run, recipe, quiet)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_the_exported_graphs(run):
    for role in ROLES:
        parity = read_json(run.onnx(role) / "parity.json")
        assert {case["batch_size"] for case in parity["cases"]} == {1, 3}
        assert {case["timestep"] for case in parity["cases"]} == {0, 499, 999}
        assert all(case["max_abs"] < 1e-4 and case["cosine"] > 0.9999 for case in parity["cases"])
        assert (run.onnx(role) / "scheduler_config.json").is_file()


def test_the_engine_is_real(run):
    built = read_json(run.engine("tensorrt_rtx") / "build.json")
    assert (run.engine("tensorrt_rtx") / "model.engine").stat().st_size == built["bytes"] > 100_000
    assert built["batch"] == [1, 1, 2] and "SM86" in built["compute_capabilities"] and built["seconds"] > 0


def test_the_latency_table_is_complete(latency, recipe):
    measured = {(row.role, row.backend, row.batch_size) for row in latency.rows if row.status == "measured"}
    assert measured >= {
        (role, backend, size) for role in ROLES for backend in ("pytorch", "onnxruntime") for size in (1, 2)
    }
    for row in latency.rows:
        if row.status == "measured":
            assert 0 < row.step_p50_ms <= row.step_p90_ms <= row.step_p99_ms
            assert row.image_ms == pytest.approx(row.step_p50_ms * 3 / row.batch_size)
            assert row.images_per_second == pytest.approx(1000 / row.image_ms)
        if row.role == "teacher":
            assert row.speedup == 1.0
    assert latency.costs["student"].params < 0.4 * latency.costs["teacher"].params
    assert latency.costs["student"] == latency.costs["pruned"]


def test_onnx_runtime_needs_less_memory_than_pytorch(latency):
    peaks = {(row.role, row.backend): row.peak_memory_mib for row in latency.rows if row.batch_size == 1}
    for role in ROLES:
        assert 10 < peaks[role, "onnxruntime"] < peaks[role, "pytorch"]


def test_what_cannot_run_here_says_why(latency):
    if torch.cuda.is_available():
        pytest.skip("an engine can run here")
    engines = [row for row in latency.rows if row.backend == "tensorrt_rtx"]
    assert [row.batch_size for row in engines] == [1, 2]
    assert all((row.status, row.reason, row.step_p50_ms) == ("not run", "no NVIDIA GPU", None) for row in engines)


def test_an_engine_that_is_built_later_is_asked_for_its_time(run, recipe, quiet):
    before, manifest = run.latency.read_text(), run.engine("tensorrt_rtx") / "manifest.json"
    fewer = recipe.benchmark.model_copy(update={"batch_sizes": (1,), "iterations": 2})
    quicker, built = recipe.model_copy(update={"benchmark": fewer}), manifest.read_text()
    manifest.unlink()
    reasons = []
    for _ in range(2):
        (row,) = (row for row in benchmark(run, quicker, quiet).rows if row.backend == "tensorrt_rtx")
        reasons.append(row.reason)
        manifest.write_text(built)
    assert reasons[0] == "no engine was built" != reasons[1]
    run.latency.write_text(before)


def test_a_changed_machine_setting_measures_again(run, small_recipe, photos, quiet):
    before = run.latency.read_text()
    other = small_recipe(data={"name": str(photos)}, benchmark={"batch_sizes": [1], "iterations": 2})
    threads = torch.get_num_threads()
    latency = benchmark(run, other, quiet)
    assert {row.batch_size for row in latency.rows} == {1} and latency.profile.iterations == 2
    assert torch.get_num_threads() == threads
    run.latency.write_text(before)


def test_rounds_rotate_so_that_everyone_goes_first():
    assert [rotated([1, 2, 3], index) for index in range(4)] == [[1, 2, 3], [2, 3, 1], [3, 1, 2], [1, 2, 3]]


def test_interleaved_rounds_visit_every_role_once(small_recipe, quiet):
    visits = []

    def denoiser(role):
        def predict(sample, timestep):
            visits.append(role)
            return sample

        predict.backend = "counting"
        return predict

    config = small_recipe(benchmark={"iterations": 4, "warmup_iterations": 2}).benchmark
    inputs = {"sample": torch.zeros(1, 1, 2, 2), "timestep": torch.zeros(1)}
    with quiet.progress("", 1) as progress:
        seconds = time_side_by_side({role: denoiser(role) for role in ROLES}, inputs, config, progress)
    assert {role: len(taken) for role, taken in seconds.items()} == dict.fromkeys(ROLES, 4)
    assert all(set(visits[index : index + 3]) == set(ROLES) for index in range(0, 18, 3))


def test_a_model_that_predicts_nan_is_not_timed(small_recipe, quiet):
    def broken(sample, timestep):
        return sample * float("nan")

    broken.backend = "broken"
    inputs = {"sample": torch.ones(1, 1, 2, 2), "timestep": torch.zeros(1)}
    with quiet.progress("", 1) as progress, pytest.raises(StageFailedError, match="student on broken"):
        time_side_by_side({"student": broken}, inputs, small_recipe().benchmark, progress)


def test_the_quality_table(quality, run):
    assert [row.role for row in quality.rows] == ["floor", *ROLES]
    floor, teacher, pruned, student = quality.rows
    assert floor.frechet_distance < teacher.frechet_distance  # an untrained teacher draws noise
    assert teacher.psnr_to_teacher is None and floor.backend == ""
    for row in (pruned, student):
        assert 0 < row.psnr_to_teacher < 60 and -1 <= row.ssim_to_teacher <= 1 and row.backend == "onnxruntime"
    profile = quality.profile
    assert (profile.num_images, profile.num_inference_steps, profile.reference.num_images) == (8, 3, 40)
    assert profile.extractor_sha256.startswith("57934424")


def test_the_kept_samples_are_the_scored_images(run):
    samples = {role: load_file(run.samples(role))["samples"] for role in ROLES}
    assert {tuple(value.shape) for value in samples.values()} == {(8, 1, 28, 28)}
    assert not torch.equal(samples["teacher"], samples["student"])


def test_a_role_that_is_the_teacher_is_identical_to_it(run, small_teacher, tmp_path, quiet, recipe):
    """The student folder replaced by the teacher's model: similarity at its maximum, error map zero."""
    import shutil

    twin = Run(tmp_path / "twin")
    for folder in (twin.pruned, twin.student):
        shutil.copytree(small_teacher, folder)
    quality = evaluate(twin, recipe, quiet)
    student = quality.rows[-1]
    assert student.psnr_to_teacher == 100 and student.ssim_to_teacher == pytest.approx(1)
    assert student.backend == "pytorch"
    diagnose(twin, recipe, quiet)
    assert float(load_file(twin.diagnosis / diagnostics.MAP)["squared_error"].max()) == 0


def test_the_report_is_valid_and_knows_its_directions(run):
    value = read_result(run.report)
    result = Report.model_validate(value)
    assert result.directions == DIRECTIONS
    assert result.name == "line" and result.training.kd == "place"
    assert json.loads(json.dumps(value, allow_nan=False)) == value


class Page(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.images, self.references, self.headings = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.references += [values[key] for key in ("src", "href") if key in values]
        if tag == "img":
            self.images.append(values)
        if tag in ("script", "link"):
            self.references.append(f"<{tag}>")


def test_the_page_is_self_contained(run):
    page = Page((run.path / "report.html").read_text())
    assert len(page.images) >= 6 and all(image["alt"] for image in page.images)
    assert all(reference.startswith("data:image/") for reference in page.references)


def test_the_page_holds_every_row(run, latency, quality):
    text = (run.path / "report.html").read_text()
    assert text.count("not run: no NVIDIA GPU") == (0 if torch.cuda.is_available() else 2)
    for row in quality.rows:
        assert f"{row.kid_mean:.3f} ± {row.kid_std:.3f}" in text
    assert f"{latency.costs['student'].params:,}" in text


def test_the_card_has_front_matter_that_hubs_read(run):
    _, front, body = (run.path / "README.md").read_text().split("---\n", 2)
    matter = yaml.safe_load(front)
    assert matter["library_name"] == "diffusers" and matter["params"] > 0
    assert "DDPMPipeline.from_pretrained" in body


def test_a_run_passes_against_its_own_baseline(run, tmp_path, quiet):
    gate.write_baseline(run.path, tmp_path / "baseline.json")
    assert gate.check(run.path, tmp_path / "baseline.json", quiet).exit_code == 0


@pytest.mark.parametrize(
    ("missing", "verb"), [("latency.json", "bench"), ("quality.json", "eval"), ("student/manifest.json", "distill")]
)
def test_a_missing_stage_is_named(run, recipe, quiet, missing, verb):
    path = run.path / missing
    content = path.read_text()
    path.unlink()
    try:
        with pytest.raises(BadInputError) as caught:
            report(run, recipe, quiet)
        assert f"edgediff {verb}" in caught.value.hint
    finally:
        path.write_text(content)


def test_a_damaged_graph_is_found_by_its_hash(run, recipe, quiet):
    graph = run.onnx("student") / "model.onnx"
    content = graph.read_bytes()
    graph.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        with pytest.raises(CorruptArtifactError, match=r"model\.onnx"):
            pipeline.compress(run, recipe, quiet)
    finally:
        graph.write_bytes(content)


def test_another_recipe_may_not_use_the_folder(run, small_recipe, photos, quiet):
    other = small_recipe(data={"name": str(photos)}, prune={"importance": "random"}, distill={"kd": "lift"})
    with pytest.raises(BadInputError, match="another recipe's run") as caught:
        pipeline.compress(run, other, quiet)
    assert "prune.importance" in caught.value.message and "distill.kd" in caught.value.message


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path, recipe, quiet):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(BadInputError, match="holds no run"):
        pipeline.compress(Run(tmp_path), recipe, quiet)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_the_error_map_is_drawn_over_the_schedule(run):
    maps = load_file(run.diagnosis / diagnostics.MAP)
    assert maps["timesteps"].tolist() == [0, 142, 285, 428, 570, 713, 856, 999]
    assert maps["squared_error"].shape == (8, 28, 28) and np.isfinite(maps["squared_error"].numpy()).all()
