"""What `eval` shows people, and what it says of data that no camera took; the verb itself runs in the whole lines."""

import re
import shutil

import pytest

from edgediff.evaluate import evaluate, show
from edgediff.generate import generate
from edgediff.output import Output
from edgediff.recipe import GenerateConfig
from edgediff.run import Run


@pytest.fixture
def quality(a_report):
    """Four rows of long figures."""
    teacher, student = a_report.quality.rows
    student = student.model_copy(update={"frechet_distance": 464.3, "kid_mean": -0.012, "noise_share": 0.125})
    pruned = student.model_copy(update={"role": "pruned", "frechet_distance": 12345.6})
    floor = teacher.model_copy(update={"role": "floor", "backend": "", "kid_mean": -0.002})
    return a_report.quality.model_copy(update={"rows": [floor, teacher, pruned, student]})


def test_every_figure_is_on_one_line_of_80_under_the_model_that_it_is_of(quality, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    show(quality, Output())
    lines = [re.split(r" {2,}", line.strip()) for line in capsys.readouterr().out.splitlines()]
    assert ["floor", "teacher", "pruned", "student"] in lines
    assert ["Fréchet distance ↓", "100", "100", "12,346", "464"] in lines
    assert ["KID ↓", "-0.002", "0.100", "-0.012", "-0.012"] in lines
    assert ["KID, ±", "0.020", "0.020", "0.050", "0.050"] in lines
    assert ["PSNR to the teacher ↑", "–", "–", "20.0 dB", "20.0 dB"] in lines
    assert ["images of noise ↓", "–", "–", "12%", "12%"] in lines


def test_the_teacher_s_own_images_are_not_called_real(small_teacher, small_recipe, tmp_path, quiet, capsys):
    few = GenerateConfig(num_images=150, num_inference_steps=1, batch_size=50)  # one in ten to test with
    images, run = generate(str(small_teacher), tmp_path / "images", few, quiet), Run(tmp_path / "run")
    for folder in (run.pruned, run.student):
        shutil.copytree(small_teacher, folder)
    quality = evaluate(run, small_recipe(data={"name": str(images)}), quiet)
    assert quality.profile.reference_kind == quality.profile.floor_kind == "images drawn by the teacher"
    show(quality, Output())
    assert "floor: images drawn by the teacher" in " ".join(capsys.readouterr().out.split())
