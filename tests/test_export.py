"""`export` refuses damaged and diverged models, keeps stdout clean, and clears away an attempt that failed."""

import shutil

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel

from edgediff import export as verb
from edgediff import model_folder
from edgediff.artifacts import read_json, verify, write_manifest
from edgediff.errors import BadInputError, CorruptArtifactError, StageFailedError
from edgediff.output import Output
from edgediff.run import Run

# The smallest stock model: these tests are about what surrounds the graph.
SMALLEST = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (4,),
    "down_block_types": ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",),
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "add_attention": False,
}


@pytest.fixture
def run(tmp_path):
    """A run with a student and nothing else."""
    torch.manual_seed(0)
    run = Run(tmp_path / "run")
    model_folder.save(run.student, UNet2DModel(**SMALLEST), DDPMScheduler())
    write_manifest(run.student, stage="distill", config={}, inputs={})
    return run


def test_a_good_export_speaks_on_stderr_only_and_clears_a_failed_attempt(run, small_recipe, capfd):
    with pytest.raises(StageFailedError):
        verb.export(run, small_recipe(export={"tolerance": 1e-12, "batch_sizes": [1]}), "student", Output("quiet"))
    failed = run.path / "onnx" / "student.over-tolerance"
    assert failed.is_dir()
    assert capfd.readouterr() == ("", "")

    parity = verb.export(run, small_recipe(), "student", Output("json"))
    assert not failed.exists()
    assert [path.name for path in (run.path / "onnx").iterdir()] == ["student"]
    stdout, stderr = capfd.readouterr()
    assert stdout == "" and all(line.startswith("export ") for line in stderr.splitlines())

    verify(run.onnx("student"))
    assert read_json(run.onnx("student") / "config.json")["_class_name"] == "UNet2DModel"
    assert [(case.batch_size, case.timestep) for case in parity.cases] == [
        (batch_size, timestep) for batch_size in (1, 3) for timestep in (0, 499, 999)
    ]
    assert all(case.relative < 1e-5 and case.cosine > 0.99999 for case in parity.cases)


def test_a_student_whose_weights_changed_is_not_exported(run, small_recipe, quiet):
    weights = run.student / "unet" / model_folder.WEIGHTS
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CorruptArtifactError, match=model_folder.WEIGHTS):
        verb.export(run, small_recipe(), "student", quiet)
    assert not (run.path / "onnx").exists()


def test_a_model_that_predicts_nan_never_becomes_a_graph(run, small_recipe, quiet):
    model = UNet2DModel(**SMALLEST)
    torch.nn.init.constant_(model.conv_out.bias, float("nan"))
    shutil.rmtree(run.student)
    model_folder.save(run.student, model, DDPMScheduler())
    with pytest.raises(StageFailedError, match="not finite from pytorch"):
        verb.export(run, small_recipe(), "student", quiet)
    assert not list((run.path / "onnx").iterdir())


def test_a_model_that_cannot_fit_is_refused_before_the_work(run, small_recipe, quiet, monkeypatch):
    monkeypatch.setattr(verb, "MEMORY_COPIES", 10**12)
    with pytest.raises(BadInputError, match="not enough memory to export"):
        verb.export(run, small_recipe(), "student", quiet)
    assert not (run.path / "onnx").exists()
