"""The verbs `export` and `build` where they refuse, skip or fail; the whole line covers the way through."""

import onnx
import pytest

from edgediff.backends import availability
from edgediff.backends.onnxruntime import OnnxRuntimeDenoiser
from edgediff.backends.tensorrt import EngineDenoiser, build_engine, library
from edgediff.build import build, check_buildable
from edgediff.errors import BadInputError, CorruptArtifactError, MissingExtraError, StageFailedError
from edgediff.export import export
from edgediff.run import Run


@pytest.fixture(scope="module")
def exported(small_recipe, tmp_path_factory, quiet):
    run = Run(tmp_path_factory.mktemp("runs") / "run")
    export(run, small_recipe(), "teacher", quiet)
    return run


def test_names_shapes_and_opset_of_the_graph(exported):
    graph = onnx.load(exported.onnx("teacher") / "model.onnx")
    assert [node.name for node in graph.graph.input] == ["sample", "timestep"]
    assert [node.name for node in graph.graph.output] == ["out_sample"]
    sizes = [dim.dim_param or dim.dim_value for dim in graph.graph.input[0].type.tensor_type.shape.dim]
    assert sizes == ["batch", 1, 28, 28]
    assert [entry.version for entry in graph.opset_import if entry.domain == ""] == [20]


def test_the_graph_says_nothing_of_the_machine_it_was_made_on(exported):
    content = (exported.onnx("teacher") / "model.onnx").read_bytes()
    assert b"site-packages" not in content and b".py" not in content


def test_any_batch_runs(exported, small_teacher):
    import torch

    session = OnnxRuntimeDenoiser(exported.onnx("teacher") / "model.onnx", threads=1)
    for batch in (1, 5, 70):
        assert session(torch.zeros(batch, 1, 28, 28), torch.zeros(batch, dtype=torch.long)).shape == (batch, 1, 28, 28)


def test_an_export_is_not_repeated(exported, small_recipe, quiet):
    path = exported.onnx("teacher") / "model.onnx"
    written = path.stat().st_mtime_ns
    assert export(exported, small_recipe(), "teacher", quiet).max_abs < 1e-4
    assert path.stat().st_mtime_ns == written


def test_over_tolerance_is_an_error_and_the_file_says_so(small_recipe, tmp_path, quiet):
    run = Run(tmp_path / "run")
    with pytest.raises(StageFailedError, match=r"allowed: 1\.0e-12") as caught:
        export(run, small_recipe(export={"tolerance": 1e-12, "batch_sizes": [1]}), "teacher", quiet)
    assert not run.onnx("teacher").exists()
    aside = run.path / "onnx" / "teacher.over-tolerance"
    assert (aside / "model.onnx").is_file() and (aside / "parity.json").is_file()
    assert str(aside) in caught.value.hint


@pytest.mark.parametrize(("role", "verb"), [("pruned", "prune"), ("student", "distill")])
def test_nothing_to_export(small_recipe, tmp_path, quiet, role, verb):
    with pytest.raises(BadInputError) as caught:
        export(Run(tmp_path), small_recipe(), role, quiet)
    assert f"edgediff {verb}" in caught.value.hint


def test_a_graph_that_is_no_graph(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"nonsense")
    with pytest.raises(CorruptArtifactError):
        OnnxRuntimeDenoiser(tmp_path / "model.onnx")
    with pytest.raises(StageFailedError, match="does not accept the graph"):
        build_engine("tensorrt_rtx", tmp_path / "model.onnx", (1, 1, 1))
    with pytest.raises(BadInputError, match="not found"):
        OnnxRuntimeDenoiser(tmp_path / "none.onnx")


def test_a_provider_that_is_not_installed(exported):
    if "CUDAExecutionProvider" in __import__("onnxruntime").get_available_providers():
        pytest.skip("the CUDA provider is installed")
    with pytest.raises(MissingExtraError) as caught:
        OnnxRuntimeDenoiser(exported.onnx("teacher") / "model.onnx", provider="CUDAExecutionProvider")
    assert "pip install 'edgediff[gpu]'" in caught.value.hint


def test_building_before_exporting(small_recipe, tmp_path, quiet):
    with pytest.raises(BadInputError, match="nothing to build") as caught:
        build(Run(tmp_path), small_recipe(build={"backends": ["tensorrt_rtx"]}), quiet)
    assert "edgediff export" in caught.value.hint
    assert build(Run(tmp_path), small_recipe(), quiet) == []


def test_a_missing_builder_comes_with_the_pip_command(small_recipe):
    if availability()["tensorrt"].version:
        pytest.skip("the classic tensorrt is installed")
    with pytest.raises(MissingExtraError) as caught:
        check_buildable(small_recipe(build={"backends": ["tensorrt"]}))
    assert caught.value.hint == "install it with `pip install 'edgediff[trt]'`"


def test_a_cancelled_build_leaves_no_engine(exported):
    with pytest.raises(StageFailedError, match="could not build"):
        build_engine("tensorrt_rtx", exported.onnx("teacher") / "model.onnx", (1, 1, 1), lambda phase, steps: False)


def test_an_engine_needs_a_gpu(tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    (tmp_path / "model.engine").write_bytes(b"")
    with pytest.raises(BadInputError, match="NVIDIA GPU"):
        EngineDenoiser("tensorrt_rtx", tmp_path / "model.engine")
    with pytest.raises(BadInputError, match="not found"):
        EngineDenoiser("tensorrt_rtx", tmp_path / "none.engine")


def test_every_backend_says_what_it_can_do_and_why_not():
    found = availability()
    assert set(found) == {"pytorch", "onnxruntime", "tensorrt_rtx", "tensorrt", "openvino"}
    assert found["pytorch"].can_run and found["onnxruntime"].can_run
    assert found["tensorrt_rtx"].can_build and found["tensorrt_rtx"].version == library("tensorrt_rtx").__version__
    for backend in found.values():
        assert (backend.can_build and backend.can_run) or backend.why_not


@pytest.mark.gpu
def test_an_engine_agrees_with_pytorch(small_recipe, small_teacher, exported, tmp_path):
    import torch

    from edgediff import model_folder
    from edgediff.backends.pytorch import PyTorchDenoiser

    engine, _ = build_engine("tensorrt_rtx", exported.onnx("teacher") / "model.onnx", (1, 2, 4))
    (tmp_path / "model.engine").write_bytes(engine)
    loaded = model_folder.load(small_teacher)
    inputs = loaded.family.example_inputs(loaded.model.config, 3)
    expected = PyTorchDenoiser(loaded.model, loaded.family)(**inputs)
    measured = EngineDenoiser("tensorrt_rtx", tmp_path / "model.engine")(**inputs)
    torch.testing.assert_close(measured, expected, atol=1e-2, rtol=0)  # TF32 matrix products
    with pytest.raises(BadInputError, match="batch size"):
        EngineDenoiser("tensorrt_rtx", tmp_path / "model.engine")(
            **loaded.family.example_inputs(loaded.model.config, 5)
        )
