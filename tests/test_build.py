"""`build` with the real TensorRT-RTX on a hand-made graph: what is skipped, rebuilt, refused and interrupted."""

import signal
import threading

import onnx
import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel
from small_graphs import write_graph

from edgediff import model_folder
from edgediff.artifacts import sha256, verify, write_manifest
from edgediff.backends.tensorrt import build_engine
from edgediff.build import build
from edgediff.errors import BadInputError, CorruptArtifactError, StageFailedError
from edgediff.run import Run


@pytest.fixture
def recipe(small_recipe):
    return small_recipe(build={"backends": ["tensorrt_rtx"], "min_batch": 1, "opt_batch": 2, "max_batch": 4})


@pytest.fixture
def run(tmp_path):
    """A run that holds an exported student."""
    run = Run(tmp_path / "run")
    distill(run, seed=0)
    export(run, "Tanh")
    return run


def distill(run, seed):
    torch.manual_seed(seed)
    model = UNet2DModel(
        sample_size=4,
        in_channels=1,
        out_channels=1,
        block_out_channels=(4,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        layers_per_block=1,
        norm_num_groups=2,
        add_attention=False,
    )
    model_folder.save(run.student, model, DDPMScheduler())


def export(run, *operators):
    run.onnx("student").mkdir(parents=True, exist_ok=True)
    write_graph(run.onnx("student") / "model.onnx", *operators)
    weights = model_folder.load(run.student).sha256
    write_manifest(run.onnx("student"), stage="export", config={}, inputs={"weights": weights})


def test_an_engine_is_built_once_and_again_for_another_graph_or_batch(run, recipe, small_recipe, quiet):
    engine = run.engine("tensorrt_rtx") / "model.engine"
    (built,) = build(run, recipe, quiet)
    assert (built.batch, built.bytes) == ((1, 2, 4), engine.stat().st_size)
    assert built.onnx_sha256 == sha256(run.onnx("student") / "model.onnx")
    assert verify(engine.parent)["config"]["version"] == built.version

    written = engine.stat().st_mtime_ns
    assert build(run, recipe, quiet) == [built]
    assert engine.stat().st_mtime_ns == written

    export(run, "Tanh", "Sigmoid")
    (other,) = build(run, recipe, quiet)
    assert other.onnx_sha256 != built.onnx_sha256 and engine.stat().st_mtime_ns > written

    wider = small_recipe(build={"backends": ["tensorrt_rtx"], "max_batch": 8})
    assert build(run, wider, quiet)[0].batch == (1, 1, 8)


def test_a_damaged_engine_is_named(run, recipe, quiet):
    build(run, recipe, quiet)
    engine = run.engine("tensorrt_rtx") / "model.engine"
    engine.write_bytes(engine.read_bytes()[:-1])
    with pytest.raises(CorruptArtifactError, match=r"model\.engine"):
        build(run, recipe, quiet)


def test_a_damaged_graph_is_not_built_from(run, recipe, quiet):
    write_graph(run.onnx("student") / "model.onnx", "Sigmoid")
    with pytest.raises(CorruptArtifactError, match=r"model\.onnx"):
        build(run, recipe, quiet)


def test_an_export_of_an_earlier_student_is_not_built_from(run, recipe, quiet):
    distill(run, seed=1)
    with pytest.raises(BadInputError, match="exported before the student") as caught:
        build(run, recipe, quiet)
    assert f"edgediff export {run.path}" in caught.value.hint


def test_a_valid_graph_that_the_parser_refuses_is_told_in_its_own_words(run, recipe, quiet):
    export(run, "Tanh", "Bernoulli")  # standard ONNX, which TensorRT does not have
    onnx.checker.check_model(str(run.onnx("student") / "model.onnx"), full_check=True)
    with pytest.raises(StageFailedError, match="does not accept the graph") as caught:
        build(run, recipe, quiet)
    assert "Bernoulli" in caught.value.hint
    assert not (run.path / "engine").exists()


def test_the_failed_rebuild_leaves_the_engine_that_stood_there(run, recipe, quiet):
    build(run, recipe, quiet)
    before = (run.engine("tensorrt_rtx") / "model.engine").read_bytes()
    export(run, "Bernoulli")
    with pytest.raises(StageFailedError):
        build(run, recipe, quiet)
    assert (run.engine("tensorrt_rtx") / "model.engine").read_bytes() == before
    assert [path.name for path in (run.path / "engine").iterdir()] == ["tensorrt_rtx"]


def test_sigint_stops_the_builder_and_is_not_swallowed_by_it(run):
    handler = signal.getsignal(signal.SIGINT)

    def interrupt(phase, steps):
        signal.raise_signal(signal.SIGINT)
        return True

    with pytest.raises(KeyboardInterrupt):
        build_engine("tensorrt_rtx", run.onnx("student") / "model.onnx", (1, 1, 1), interrupt)
    assert signal.getsignal(signal.SIGINT) is handler


def test_an_engine_can_be_built_off_the_main_thread(run):
    built = []
    graph = run.onnx("student") / "model.onnx"
    worker = threading.Thread(target=lambda: built.append(build_engine("tensorrt_rtx", graph, (1, 1, 1))))
    worker.start()
    worker.join()
    assert len(built[0][0]) > 1000
