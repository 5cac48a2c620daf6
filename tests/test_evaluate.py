"""What `eval` shows people; the verb itself runs in the whole lines."""

import re

import pytest

from edgediff.evaluate import show
from edgediff.output import Output


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
