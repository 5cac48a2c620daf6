"""The verb `report` over run folders whose stages are written by hand: JSON, page, card, and what it refuses."""

import html.parser
import io
import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from diffusers import DDPMScheduler, UNet2DModel
from PIL import Image
from safetensors.numpy import save_file

from edgediff import diagnostics, model_folder
from edgediff.artifacts import content_hash, read_json, read_result, write_json, write_manifest, write_result
from edgediff.errors import BadInputError, CorruptArtifactError
from edgediff.output import Output
from edgediff.recipe import Recipe, check
from edgediff.report import report
from edgediff.reporting import figures
from edgediff.reporting.page import short
from edgediff.results import (
    DIRECTIONS,
    BudgetCheck,
    ClassAccuracy,
    ClassAccuracyRow,
    Diagnosis,
    ErrorPictures,
    LatencyRow,
    ModelDiagnosis,
    Parity,
    ParityCase,
    QualityRow,
    Reference,
    Report,
    Search,
    SearchPoint,
    Sharpness,
    TimestepError,
)
from edgediff.run import ROLES, Run

KINDS = {
    "none": ("loss", "diffusion", "grad_norm", "learning_rate"),
    "output": ("loss", "diffusion", "output", "coarse", "fine", "fine_weight", "slope", "intercept", "grad_norm"),
    "place": ("loss", "diffusion", "place", "coarse", "fine", "fine_weight", "slope", "intercept", "grad_norm"),
}
STEPS = 30


@pytest.fixture(scope="module")
def models(small_teacher, tmp_path_factory):
    """Pipelines to stand for pruned, student, and a student trained again."""
    folder = tmp_path_factory.mktemp("models")
    config = {**UNet2DModel.load_config(small_teacher / "unet"), "block_out_channels": (4, 8)}
    for seed, name in enumerate(("pruned", "student", "again")):
        torch.manual_seed(seed)
        model_folder.save(folder / name, UNet2DModel.from_config(config), DDPMScheduler())
    return folder


@pytest.fixture
def finished(models, small_recipe, a_report, tmp_path, quiet):
    """A function (kd, more of `distill`) → a run folder with every stage's result, its recipe, and its `report()`."""

    def make(kd="place", **distill):
        recipe = small_recipe(
            build={"backends": ["tensorrt_rtx"]},
            distill={"kd": kd, **distill},
            evidence="measured",
            expected={"speedup": 4},
        )
        run = Run(tmp_path / "r&d <1>")
        weights = {"teacher": "t" * 64} | {
            name: model_folder.load(models / name).sha256 for name in ("pruned", "student")
        }
        shutil.copytree(models / "pruned", run.pruned)
        reached = a_report.reached.model_dump(mode="json")
        write_manifest(run.pruned, stage="prune", config={}, inputs={"teacher": weights["teacher"]}, reached=reached)
        shutil.copytree(models / "student", run.student)
        training = {**a_report.training.model_dump(), "kd": kd, "final": {"loss": 0.5}}
        inputs = {"teacher": weights["teacher"], "pruned": content_hash(run.pruned)}
        write_manifest(run.student, stage="distill", config={}, inputs=inputs, training=training)
        lines = [{"step": step, **dict.fromkeys(KINDS[kd], 1 / step)} for step in range(1, STEPS + 1)]
        run.train_log.write_text("".join(json.dumps(line) + "\n" for line in lines))
        case = ParityCase(batch_size=1, timestep=0, max_abs=2e-6, relative=1e-7, cosine=1.0)
        parity = Parity(tolerance=1e-3, opset=20, cases=[case]).model_dump(mode="json")
        now = recipe.model_dump(mode="json")
        exported = {"export": now["export"]}
        for role in ROLES:
            run.onnx(role).mkdir(parents=True)
            (run.onnx(role) / "model.onnx").write_text(role)
            write_json(run.onnx(role) / "parity.json", parity)
            write_manifest(run.onnx(role), stage="export", config=exported, inputs={"weights": weights[role]})
        engine = run.engine("tensorrt_rtx")
        engine.mkdir(parents=True)
        write_json(engine / "build.json", a_report.builds[0].model_dump(mode="json"))
        write_manifest(engine, stage="build", config={}, inputs={"onnx": content_hash(run.onnx("student"))})
        latency = a_report.latency.model_copy(
            update={
                "rows": [
                    row.model_copy(update={"step_p90_ms": row.step_p50_ms * 1.1, "step_p99_ms": row.step_p50_ms * 1.5})
                    if row.step_p50_ms
                    else row
                    for row in a_report.latency.rows
                ]
            }
        )
        profile = a_report.quality.profile.model_copy(update={"noise_limit": 0.69})
        quality = a_report.quality.model_copy(update={"rows": quality_rows(a_report), "profile": profile})
        measured = {
            "benchmark": now["benchmark"],
            "evaluate": {key: now["evaluate"][key] for key in ("num_inference_steps", "guidance_scale")},
            "build": {"backends": now["build"]["backends"]},
            "device": "cpu A",
        }
        graphs = {f"onnx/{role}": content_hash(run.onnx(role)) for role in ROLES}
        inputs = {**weights, **graphs, "engine/tensorrt_rtx": content_hash(engine)}
        write_result(run.latency, latency.model_dump(mode="json"), stage="benchmark", config=measured, inputs=inputs)
        scored, inputs = {"evaluate": now["evaluate"], "data": now["data"]}, {**weights, **graphs}
        write_result(run.quality, quality.model_dump(mode="json"), stage="evaluate", config=scored, inputs=inputs)
        run.samples("teacher").parent.mkdir()
        for index, role in enumerate(ROLES):
            save_file({"samples": np.full((14, 1, 6, 6), 40 * index, np.uint8)}, run.samples(role))
        return SimpleNamespace(run=run, recipe=recipe, report=lambda: report(run, recipe, quiet))

    return make


def quality_rows(a_report):
    teacher, student = a_report.quality.rows
    student = student.model_copy(update={"noise_share": 0.125})
    scores = {"kid_mean": 0.01, "kid_std": 0.01, "precision": 0.9, "recall": 0.9, "noise_share": 0.0}
    floor = QualityRow(role="floor", backend="", frechet_distance=61.27, **scores)
    return [floor, teacher, student.model_copy(update={"role": "pruned", "frechet_distance": 1234.5}), student]


def diagnosed(run):
    """Leave a diagnosis of two timesteps and one picture, of the weights that the run holds."""
    folder = run.diagnosis
    folder.mkdir()
    spread = {"slope_std": 0.1, "intercept_std": 0.01}
    diagnosis = Diagnosis(
        reference=Reference(name="clothes/test", sha256="0", num_images=9),
        num_images=5,
        prediction_type="epsilon",
        models={
            role: ModelDiagnosis(
                prediction_type=prediction_type,
                errors=[
                    TimestepError(timestep=t, mse=0.5, x0_rmse=0.25 * (t + 1), slope=0.75, intercept=-0.125, **spread)
                    for t in (0, 999)
                ],
                sharpness=Sharpness(rho=0.05, loss=0.3, gradient_norm=2.5, sharpness=4.25),
            )
            for role, prediction_type in (("pruned", "epsilon"), ("student", "v_prediction"))
        },
        pictures=ErrorPictures(
            files=["image-0.png"], images=[1234], timesteps=[0, 999], rows=["noised", "error"], low=0.001, high=1
        ),
    )
    errors = np.linspace(0, 1, 2 * 6 * 6, dtype=np.float32).reshape(2, 6, 6)
    save_file({"timesteps": np.array([0, 999]), "squared_error": errors}, folder / diagnostics.MAP)
    (folder / "image-0.png").write_bytes(figures.grid(np.zeros((4, 3, 6, 6), np.uint8), 2))
    write_json(folder / diagnostics.RESULT, diagnosis.model_dump(mode="json"))
    weights = {role: read_json(run.latency)["inputs"][role] for role in ROLES}
    write_manifest(folder, stage="diagnose", config={}, inputs=weights)
    return diagnosis


class Page(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.images, self.sources, self.references, self.heads, self.tables = [], [], [], [], 0
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.references += [values[key] for key in ("src", "srcset", "href", "action", "data") if key in values]
        self.references += [f"<{tag}>"] if tag in ("script", "link", "iframe", "object") else []
        self.images += [values] if tag == "img" else []
        self.sources += [values] if tag == "source" else []
        self.heads += [values] if tag == "th" else []
        self.tables += tag == "table"


def page_of(run):
    return (run.path / "report.html").read_text(encoding="utf-8")


def words(text):
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", text)))


def test_the_json_is_a_report_that_can_be_traced(finished):
    line = finished()
    result = line.report()
    assert Report.model_validate(read_result(line.run.report)) == result
    assert result.directions == DIRECTIONS and result.teacher == "small" and result.name == "r&d <1>"
    inputs = read_json(line.run.report)["inputs"]
    assert set(inputs) == {
        *("pruned", "student", "onnx/teacher", "onnx/pruned", "onnx/student", "engine/tensorrt_rtx"),
        *("train.jsonl", "latency.json", "quality.json"),
    }
    assert inputs["student"] == content_hash(line.run.student)


def test_the_page_needs_nothing_from_outside_and_is_accessible(finished):
    line = finished()
    line.report()
    text = page_of(line.run)
    page = Page(text)
    assert page.references and all(reference.startswith("data:image/") for reference in page.references)
    assert "http" not in text and "url(" not in text and "@import" not in text
    assert all(image["alt"].strip() for image in page.images)
    assert len({image["alt"] for image in page.images}) == len(page.images)
    assert page.tables >= 6 and all(head["scope"] in ("row", "col") for head in page.heads)
    assert {source["media"] for source in page.sources} == {"(prefers-color-scheme: dark)"}


def test_names_are_escaped_on_the_page(finished):
    line = finished()
    line.report()
    assert "r&amp;d &lt;1&gt;" in page_of(line.run) and "<1>" not in page_of(line.run)


def test_the_sections_come_in_the_order_of_what_matters(finished):
    line = finished()
    line.report()
    found = re.findall(r'<h2 id="(\w+)"', page_of(line.run))
    assert " ".join(found) == "samples quality latency cost training diagnostics export recipe provenance"


def test_samples_are_one_strip_a_role_and_row_of_seeds(finished):
    line = finished()
    line.report()
    alts = [image["alt"] for image in Page(page_of(line.run)).images if image["alt"].startswith("Images drawn")]
    assert alts == [f"Images drawn by the {role}, seeds {seeds}" for seeds in ("0 to 11", "12 to 13") for role in ROLES]


def test_every_row_and_direction_is_on_the_page(finished):
    line = finished()
    line.report()
    text = words(page_of(line.run))
    assert "student tensorrt_rtx (cuda, fp32) 1 not run: no NVIDIA GPU" in text
    assert "real images (floor) – 61.3 0.010 ± 0.010 0.90 0.90 – – 0.0% –" in text
    assert "student b 200 0.500 ± 0.050 0.50 0.40 20.0 dB 0.800 12.5% 0.0%" in text
    assert "is more than 0.69 of their contrast" in text
    assert "pruned b 1,234 " in text
    assert "student onnxruntime (cpu, fp32) 1 2.00 2.20 3.00 " in text
    assert "noise ↓" in text and "diverged ↓" in text
    assert "FD ↓" in text and "SSIM ↑" in text and "images/s ↑" in text and "parameters ↓" in text
    assert "1.00k → 100" in text and "10.0× fewer" in text
    assert "tensorrt_rtx 0.00500 MB 3.00 s 1 / 1 / 1" in text
    assert "expected by the recipe (measured) figure speedup 4" in text
    assert content_hash(line.run.pruned) in text


def test_a_run_without_a_data_set_is_not_held_against_real_images(finished, a_report):
    profile, drawn = a_report.quality.profile, "images drawn by the teacher"
    profile.reference_kind = profile.floor_kind = drawn
    rows = [ClassAccuracyRow(role="student", guidance_scale=1.0, class_accuracy=0.5)]
    a_report.quality.class_accuracy = ClassAccuracy(
        classifier_sha256="c" * 64, num_images=4, real=0.75, num_real=9, rows=rows
    )
    line = finished()
    line.report()
    text, card = words(page_of(line.run)), (line.run.path / "README.md").read_text(encoding="utf-8")
    assert f"teacher 100, {drawn} (floor) 61.3" in text
    assert f"{drawn} (floor) – 61.3 0.010 ± 0.010" in text and f"| {drawn} (floor) | 61.3 | 0.010 ± 0.010 |" in card
    for said in (text, card):
        assert f"5 images a row against 9 of n ({drawn})" in said or f"5 images against 9 of n ({drawn})" in said
        assert f"trained on {drawn}" in said and "real images" not in said
    assert f"{drawn} 75.0% student 50.0%" in text


@pytest.mark.parametrize(("kd", "titles"), [("place", 6), ("none", 2)])
def test_the_curves_are_those_that_were_logged(finished, kd, titles):
    line = finished(kd)
    line.report()
    found = [image["alt"] for image in Page(page_of(line.run)).images if f"over {STEPS} training steps" in image["alt"]]
    assert len(found) == titles
    assert found[0].startswith("Loss and its terms") and ("place" in found[0]) == (kd == "place")
    assert any(alt.startswith("Coarse and fine part") for alt in found) == (kd == "place")


def test_parts_that_an_earlier_version_logged_of_a_loss_without_any_are_not_shown(finished):
    line = finished("output")
    assert "coarse" in line.run.train_log.read_text()
    line.report()
    alts = [image["alt"] for image in Page(page_of(line.run)).images]
    assert not any("fine part" in alt for alt in alts)
    assert any(alt.startswith("Slope while training") for alt in alts)


def test_terms_that_are_logged_at_some_steps_and_parts_that_are_zero(finished):
    line = finished()
    lines = [json.loads(text) for text in line.run.train_log.read_text().splitlines()]
    for record in lines:
        record["coarse"] = 0.0
        if record["step"] % 10 == 1:
            record |= {"grad_norm.place": 7.0, "grad_norm.diffusion": 8.0}
    line.run.train_log.write_text("".join(json.dumps(record) + "\n" for record in lines))
    line.report()
    alts = [image["alt"] for image in Page(page_of(line.run)).images]
    (gradients,) = (alt for alt in alts if alt.startswith("Gradient norms of the terms"))
    assert gradients.endswith("at the end diffusion 8.00, place 7.00")
    (parts,) = (alt for alt in alts if alt.startswith("Coarse and fine part"))
    assert "fine 0.0333" in parts and "coarse 0" in parts


def test_the_diagnosis_is_on_the_page_and_in_the_json(finished):
    line = finished()
    diagnosis = diagnosed(line.run)
    assert line.report().diagnosis == diagnosis
    inputs = read_json(line.run.report)["inputs"]
    assert inputs["diagnosis"] == content_hash(line.run.diagnosis)
    assert Report.model_validate(read_result(line.run.report)).diagnosis == diagnosis
    source = page_of(line.run)
    page, text = Page(source), words(source)
    found = re.findall(r'<h2 id="(\w+)"', source)
    assert " ".join(found) == "samples quality latency cost training errors diagnostics export recipe provenance"
    assert "on 5 held-out images of clothes/test" in text and "v_prediction is converted exactly" in text
    assert "pruned epsilon 0.300 2.50 4.25" in text and "with ρ = 0.05" in text
    assert "Image 1,234 of clothes/test" in text
    alts = [image["alt"] for image in page.images]
    assert "Image 1,234 at timesteps 0, 999, from top to bottom: noised, error" in alts
    charts = [alt for alt in alts if "over the timesteps 0 to 999" in alt]
    assert len(charts) == 4 and "student from 0.250 to 250" in charts[1]
    assert len(set(alts)) == len(alts)
    assert all(reference.startswith("data:image/") for reference in page.references)
    assert content_hash(line.run.pruned) in text and "from student" in text


def test_a_diagnosis_of_other_weights_is_left_out_and_said(finished, capsys):
    line = finished()
    diagnosed(line.run)
    manifest = line.run.diagnosis / "manifest.json"
    value = read_json(manifest)
    write_json(manifest, {**value, "inputs": {**value["inputs"], "student": "0" * 64}})
    assert report(line.run, line.recipe, Output()).diagnosis is None
    said = capsys.readouterr().err
    assert "left out, of other weights" in said and "edgediff diagnose" in said
    assert "Not diagnosed" in page_of(line.run) and "Squared error" not in page_of(line.run)
    assert "diagnosis" not in read_json(line.run.report)["inputs"]


def test_a_report_without_diagnosis_says_how_to_get_one(finished):
    line = finished()
    assert line.report().diagnosis is None
    assert "Not diagnosed" in page_of(line.run) and "Squared error" not in page_of(line.run)
    assert "error maps" not in (line.run.path / "README.md").read_text()
    diagnosed(line.run)
    line.report()
    assert "Not diagnosed" not in page_of(line.run) and "Squared error at timestep 999" in page_of(line.run)
    assert "error maps" in (line.run.path / "README.md").read_text()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "the student began with its weights."),
        ({"initial": "fresh"}, "and began with random weights."),
        ({"student_prediction": "v_prediction"}, "with its weights, taken to predict v_prediction."),
        ({"kd": "none"}, "trained on the data alone (kd none)"),
        ({"teachers": ["one", "two"]}, "distilled (kd place, 2 teachers)"),
    ],
)
def test_page_and_card_say_how_the_student_began_and_who_taught_it(finished, settings, said):
    line = finished(**settings)
    line.report()
    card = (line.run.path / "README.md").read_text(encoding="utf-8")
    for text in (page_of(line.run), card):
        assert said in text and "before distillation" not in text
    assert ("distilled" in yaml.safe_load(card.split("---\n")[1])["tags"]) == ("kd none" not in said)


def test_a_diagnosis_without_error_maps_is_left_out_and_said(finished, capsys):
    line = finished()
    diagnosed(line.run)
    (line.run.diagnosis / diagnostics.MAP).unlink()
    report(line.run, line.recipe, Output())
    assert "left out, of an earlier version" in capsys.readouterr().err and "Not diagnosed" in page_of(line.run)


def test_a_damaged_diagnosis_is_named(finished):
    line = finished()
    diagnosed(line.run)
    (line.run.diagnosis / diagnostics.MAP).write_bytes(b"cut short")
    with pytest.raises(CorruptArtifactError, match=diagnostics.MAP):
        line.report()


def test_a_run_without_engine_or_measured_speedup(finished):
    line = finished()
    shutil.rmtree(line.run.path / "engine")
    value = read_json(line.run.latency)
    value["rows"] = [row for row in value["rows"] if row["status"] == "not run"]
    write_json(line.run.latency, value)
    assert line.report().builds == []
    text = words(page_of(line.run))
    assert "No engine was built" in text and "best speedup" not in text and "not run: no NVIDIA GPU" in text


def test_the_card_is_what_hubs_read_and_says_its_limits(finished):
    line = finished()
    line.report()
    _, front, body = (line.run.path / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    matter = yaml.safe_load(front)
    assert matter["library_name"] == "diffusers" and matter["pipeline_tag"] == "unconditional-image-generation"
    assert (
        matter["base_model"] == "small" and {"kd-place", "distilled"} <= set(matter["tags"]) and matter["params"] == 100
    )
    assert 'DDPMPipeline.from_pretrained("student")' in body
    assert "| step, onnxruntime on cpu, batch 1 | 8.00 ms | 2.00 ms (4.00×) |" in body
    assert "not with Inception's FID" in body
    assert "noise images ↓ | diverged pixels ↓ |" in body and "| 20.0 dB | 0.800 | 12.5% | 0.0% |" in body
    assert "Not run: student on tensorrt_rtx (cuda) at batch 1: no NVIDIA GPU" in body
    assert "Expected by the recipe (measured): speedup 4" in body
    assert "&amp;" not in body


def test_page_and_card_say_what_the_student_learned_and_from_whom(finished):
    line = finished(
        "output",
        student_prediction="v_prediction",
        timestep_weighting="angular",
        assistants=[{"ratio": 0.25}, {"ratio": 0.375}],
    )
    line.report()
    learned = "kd output, v_prediction, angular timesteps, 2 teacher assistants"
    text, card = words(page_of(line.run)), (line.run.path / "README.md").read_text(encoding="utf-8")
    assert f"Width-pruned (ratio 0.75), distilled ({learned}) for 1 steps" in text
    assert f"1 steps of 1 with {learned}; 1.00 steps a second" in text
    assert f"width-pruned (ratio 0.75) and distilled ({learned}) for 1 steps" in card
    tags = yaml.safe_load(card.split("---\n")[1])["tags"]
    assert {"kd-output", "v_prediction", "angular-timesteps", "2-teacher-assistants"} <= set(tags)


@pytest.mark.parametrize(
    ("missing", "verb"),
    [
        ("pruned/manifest.json", "prune"),
        ("student/manifest.json", "distill"),
        ("train.jsonl", "distill"),
        ("onnx/pruned/manifest.json", "export"),
        ("latency.json", "bench"),
        ("quality.json", "eval"),
        ("samples/teacher.safetensors", "eval"),
    ],
)
def test_a_missing_stage_is_named_and_nothing_is_written(finished, missing, verb):
    line = finished()
    (line.run.path / missing).unlink()
    with pytest.raises(BadInputError, match=missing) as caught:
        line.report()
    assert f"`edgediff {verb} " in caught.value.hint
    assert not line.run.report.exists() and not (line.run.path / "report.html").exists()


def trained_again(run, models):
    manifest = read_json(run.student / "manifest.json")
    shutil.rmtree(run.student)
    shutil.copytree(models / "again", run.student)
    facts = {key: manifest[key] for key in ("stage", "config", "inputs", "training")}
    write_manifest(run.student, **facts)


def test_a_student_that_assistants_taught_is_still_compared_with_the_teacher(finished):
    line = finished()
    manifest = read_json(line.run.student / "manifest.json")
    manifest["inputs"]["teacher"] = "a" * 64 + "+" + "b" * 64
    write_json(line.run.student / "manifest.json", manifest)
    assert line.report().teacher == "small"


def exported_again(run, models):
    trained_again(run, models)
    folder = run.onnx("student")
    (folder / "model.onnx").write_text("again")
    weights = {"weights": model_folder.load(run.student).sha256}
    write_manifest(folder, stage="export", config=read_json(folder / "manifest.json")["config"], inputs=weights)


def built_again(run, models):
    folder = run.engine("tensorrt_rtx")
    (folder / "model.engine").write_text("again")
    write_manifest(folder, stage="build", config={}, inputs={"onnx": content_hash(run.onnx("student"))})


def exported_otherwise(run, models):
    """The same weights as another graph, of which the engine was built too."""
    folder = run.onnx("student")
    (folder / "model.onnx").write_text("of another opset")
    before = read_json(folder / "manifest.json")
    write_manifest(folder, stage="export", config=before["config"], inputs=before["inputs"])
    built_again(run, models)


@pytest.mark.parametrize(
    ("change", "named", "verb"),
    [
        (trained_again, "onnx/student", "export"),
        (exported_again, "engine/tensorrt_rtx", "build"),
        (exported_otherwise, "latency.json", "bench"),
        (built_again, "latency.json", "bench"),
    ],
)
def test_results_of_weights_that_were_replaced_are_refused(finished, models, change, named, verb):
    line = finished()
    change(line.run, models)
    with pytest.raises(BadInputError, match=f"than the run holds now: .*{named}") as caught:
        line.report()
    assert f"`edgediff {verb} " in caught.value.hint


@pytest.mark.parametrize(("file", "verb"), [("latency.json", "bench"), ("quality.json", "eval")])
def test_figures_of_weights_that_were_replaced_are_refused(finished, file, verb):
    line = finished()
    value = read_json(line.run.path / file)
    write_json(line.run.path / file, {**value, "inputs": {**value["inputs"], "student": "0" * 64}})
    with pytest.raises(BadInputError, match=file) as caught:
        line.report()
    assert f"`edgediff {verb} " in caught.value.hint


@pytest.mark.parametrize(
    ("changed", "said", "verb"),
    [
        ({"evaluate": {"num_images": 10_000}}, "evaluate.num_images 8 → 10000", "eval"),
        ({"evaluate": {"guidance_scale": 2.0}}, "evaluate.guidance_scale 1.0 → 2.0", "bench"),
        ({"export": {"opset": 21}}, "export.opset 20 → 21", "export"),
        ({"benchmark": {"threads": 2}}, "benchmark.threads 1 → 2", "bench"),
        ({"data": {"name": "elsewhere"}}, "data.name fashion-mnist → elsewhere", "eval"),
    ],
)
def test_figures_of_other_settings_than_the_recipe_s_are_refused(finished, quiet, changed, said, verb):
    line = finished()
    ((section, keys),) = changed.items()
    values = line.recipe.model_dump(mode="json")
    other = check({**values, section: {**values[section], **keys}}, Recipe)
    with pytest.raises(BadInputError, match=f"other settings than the recipe's now, {said}: ") as caught:
        report(line.run, other, quiet)
    ((key, value),) = keys.items()  # with which the hint's command is no circle
    assert f"`edgediff {verb} " in caught.value.hint and f"{section}.{key}={json.dumps(value)}" in caught.value.hint
    moved = {**values["data"], "folder": "/elsewhere", "encoded": "/shared"}  # where things lie decides nothing
    slower = {**values["evaluate"], "batch_size": 1}
    assert report(line.run, check({**values, "data": moved, "evaluate": slower}, Recipe), quiet).teacher == "small"


def test_scores_of_another_graph_are_refused_and_those_from_before_any_are_not(finished):
    line = finished()
    value = read_json(line.run.quality)
    write_json(line.run.quality, {**value, "inputs": {**value["inputs"], "onnx/student": "0" * 64}})
    with pytest.raises(BadInputError, match=r"than the run holds now: .*quality\.json"):
        line.report()
    without = {name: hashed for name, hashed in value["inputs"].items() if not name.startswith("onnx/")}
    write_json(line.run.quality, {**value, "inputs": without})
    line.report()


def test_figures_of_an_earlier_version_are_asked_for_again(finished):
    line = finished()
    value = read_json(line.run.latency)
    write_json(line.run.latency, {**value, "config": {"benchmark": value["config"]["benchmark"]}})
    with pytest.raises(BadInputError, match=r"earlier version: .*latency\.json") as caught:
        line.report()
    assert "`edgediff bench " in caught.value.hint


def test_a_result_of_another_version_is_named_with_what_is_wrong(finished):
    line = finished()
    value = read_json(line.run.quality)
    write_json(line.run.quality, {**value, "fid": 3.0})
    with pytest.raises(CorruptArtifactError, match=r"quality\.json") as caught:
        line.report()
    assert caught.value.hint.startswith("fid: ")


@pytest.mark.parametrize(
    ("count", "said"),
    [(0, "0"), (999, "999"), (1000, "1.00k"), (249_489, "249k"), (999_499, "999k"), (999_500, "1.00M"),
     (3_939_393, "3.94M"), (24_053_000_000, "24.1G")],
)  # fmt: skip
def test_short_counts(count, said):
    assert short(count) == said


def pixels_of(png):
    return np.asarray(Image.open(io.BytesIO(png)))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_keeps_every_pixel_in_its_place(channels):
    images = np.random.default_rng(0).integers(0, 256, (5, channels, 4, 6), dtype=np.uint8)
    canvas = pixels_of(figures.grid(images, columns=3))
    assert canvas.shape == (4 + 2 + 4, 6 + 2 + 6 + 2 + 6, 4)
    for index, image in enumerate(images):
        top, left = index // 3 * 6, index % 3 * 8
        shown = canvas[top : top + 4, left : left + 6]
        assert (shown[..., :3].transpose(2, 0, 1) == image).all() and (shown[..., 3] == 255).all()
    assert (canvas[:, 6:8, 3] == 0).all() and (canvas[6:, 16:, 3] == 0).all()


@pytest.mark.parametrize("errors", [np.zeros((2, 3, 3)), np.full((2, 3, 3), 0.25), np.geomspace(1e-9, 2, 18)])
def test_error_maps_get_brighter_with_the_error_whatever_its_range(errors):
    errors = errors.astype(np.float32).reshape(2, 3, 3)
    low, high = figures.error_range(errors)
    assert 0 < low < high and high / low < 1.001 * 10**figures.DECADES
    brightness = np.concatenate([pixels_of(figures.error_map(one, low, high)).sum(axis=2).ravel() for one in errors])
    assert (np.diff(brightness.astype(int)) >= 0).all()
    assert pixels_of(figures.error_key(low, high)).shape == (1, 256, 3)


def test_smoothing_averages_equal_stretches():
    centres, means = figures.smoothed(range(1, 101), points=4)
    assert centres.tolist() == means.tolist() == [13.0, 38.0, 63.0, 88.0]
    assert len(figures.smoothed(range(60))[0]) == 12 and len(figures.smoothed(range(10_000))[0]) == figures.SMOOTHED


def test_smoothing_averages_positions_with_their_values():
    centres, means = figures.smoothed([1.0, 2.0, 3.0, 4.0] * 5, points=2, positions=range(10, 210, 10))
    assert centres.tolist() == [55.0, 155.0]
    assert means.tolist() == [2.3, 2.7]


def points_of(chart):
    """Every line of a chart: the places (x, y) of its points in the SVG."""
    lines = re.findall(r'<path d="(M [^"]*)" clip-path', chart.light.decode())
    return [np.array(re.findall(r"[ML] (\S+) (\S+)", line), dtype=float) for line in lines]


def test_few_values_are_joined_as_they_are():
    """Twelve gradient norms, of every hundredth step: averages of five would be three points and no norm at all."""
    norms = [7.0, 1.0, 9.0] * 4
    log = [{"total": 1.0} for _ in range(1200)]
    for line, norm in zip(log[::100], norms, strict=True):
        line["norm"] = norm
    (line,) = points_of(figures.curves(log, {"norm": "norm"}, logarithmic=False))
    assert len(line) == 12
    assert np.diff(line[:, 0]) == pytest.approx(np.diff(line[:, 0]).mean(), abs=1e-4)  # the SVG's digits
    assert np.interp(line[:, 1], [line[2, 1], line[1, 1]], [9.0, 1.0]) == pytest.approx(np.array(norms), abs=1e-4)


def test_many_values_are_shown_raw_and_averaged():
    log = [{"loss": 1.0 + step % 2} for step in range(300)]
    raw, averaged = points_of(figures.curves(log, {"loss": "total"}, logarithmic=False))
    assert len(averaged) == figures.SMOOTHED < len(raw)


def test_charts_are_the_same_bytes_each_time_and_differ_by_theme():
    rows = [
        LatencyRow(role=role, backend="b", device="cpu", precision="fp32", batch_size=1, status="measured",
                   step_p50_ms=2.0, step_p90_ms=2.5, step_p99_ms=4.0, speedup=3.0)
        for role in ROLES
    ]  # fmt: skip
    first, second = figures.latency_bars(rows), figures.latency_bars(rows)
    assert first == second and first.light != first.dark
    assert "2 ms, 3.0×" in first.light.decode()


def test_charts_over_timesteps_have_a_line_a_role_in_its_colour_and_the_target():
    lines = {"pruned": [1.0, 0.1], "student": [0.01, 0.002]}
    spreads = {role: [0.1, 0.1] for role in lines}
    plain = figures.by_timestep([0, 999], lines, logarithmic=True).light.decode()
    assert all(figures.LIGHT.roles[role] in plain and f">{role}<" in plain for role in lines)
    assert ">0.01<" in plain and "fill-opacity: 0.18" not in plain
    banded = figures.by_timestep([0, 999], lines, spreads=spreads, logarithmic=False, target=1.0)
    assert "fill-opacity: 0.18" in banded.light.decode() and "stroke-dasharray" in banded.light.decode()
    assert banded.light != banded.dark


@pytest.mark.parametrize("values", [[0.0, 0.0], [0.0, 1e-9], [1e-30, 1e30]])
def test_a_logarithmic_chart_takes_a_student_that_is_its_teacher(values):
    assert figures.by_timestep([0, 999], {"student": values}, logarithmic=True, target=2.0).light


def test_every_one_of_many_curves_has_its_line_and_name():
    names = {f"q{index}": f"label {index}" for index in range(10)}
    chart = figures.curves([dict.fromkeys(names, 1.0 + step) for step in range(20)], names, logarithmic=True)
    assert all(f">{label}<" in chart.light.decode() for label in names.values())


def test_a_long_log_does_not_make_a_large_chart():
    chart = figures.curves([{"loss": 1.0 + step % 7} for step in range(50_000)], {"loss": "total"}, logarithmic=True)
    assert len(chart.light) < 60_000


def search_of(*shares, budget_ms=3.0):
    """A search that passed students of these shares of an 8 ms teacher, the last of which it found."""

    def point(share):
        costs = {"latency_ms": 8 * share, "memory_mb": 70 + 20 * share, "params": 1000 * share, "macs": 9000 * share}
        return SearchPoint(widths={"a": round(8 * share)}, blocks_removed=0, costs=costs, importance_kept=share**0.5)

    passed = [point(share) for share in (1.0, *shares)]
    return Search(
        students="widths_and_blocks",
        budgets={"latency_ms": budget_ms},
        device="cpu A",
        threads=1,
        teacher=passed[0].costs,
        found=passed[-1],
        passed=passed,
    )


def test_a_budget_is_shown_predicted_against_measured(finished, a_report):
    a_report.reached.search = search_of(*(1 - i / 20 for i in range(1, 13)), 0.35)
    a_report.latency.budget = BudgetCheck(
        device="cpu A", threads=1, clock="processor time", teacher_ms=16.0, student_ms=16 * 0.35 / 1.05
    )
    for row in a_report.latency.rows:
        if row.role == "student" and row.backend == "onnxruntime":
            row.peak_memory_mib = 73.0
    line = finished()
    result = line.report()
    assert result.budget.latency_error == pytest.approx(0.05)
    assert result.budget.memory_error == pytest.approx(77e6 / (73 * 2**20) - 1)
    text = words(page_of(line.run))
    assert "Budget budget student teacher latency of a step 3.00 ms 2.80 ms 8.00 ms" in text
    assert "latency, share of the teacher's 35.0% 33.3% +5.0%" in text
    assert "predicted from the profile of cpu A, 1 thread(s)" in text
    assert "3 (the student) 0 59.2% 2.80 ms" in text
    (alt,) = (image["alt"] for image in Page(page_of(line.run)).images if image["alt"].startswith("Importance kept"))
    assert alt == "Importance kept against latency of a step: 14 students from 8.00 ms down to 2.80 ms"


def test_a_prediction_for_another_device_is_not_compared(finished, a_report):
    a_report.reached.search = search_of(0.35)
    a_report.latency.budget = BudgetCheck(
        device="cpu B", threads=1, clock="processor time", teacher_ms=16.0, student_ms=8.0
    )
    line = finished()
    assert line.report().budget.latency_error is None
    text = words(page_of(line.run))
    assert "Not comparable: predicted for cpu A with 1 thread(s), measured on cpu B with 1" in text
    assert "35.0% 50.0% –" in text


def test_a_run_without_a_budget_has_no_such_section(finished):
    line = finished()
    assert line.report().budget is None
    assert 'id="budget"' not in page_of(line.run)
