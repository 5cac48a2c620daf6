"""PyTorch and ONNX Runtime behind one signature: the same numbers, devices and types, whatever the batch."""

import pytest
import torch
from small_graphs import write_graph

from edgediff import model_folder
from edgediff.backends.onnxruntime import OnnxRuntimeDenoiser
from edgediff.backends.pytorch import PyTorchDenoiser


@pytest.fixture
def product(tmp_path):
    """A graph whose prediction is known: sample times timestep."""
    write_graph(tmp_path / "product.onnx", side=2)
    return tmp_path / "product.onnx"


@pytest.mark.parametrize("threads", [1, None])
def test_onnx_runtime_gets_every_image_its_own_timestep(product, threads):
    denoiser = OnnxRuntimeDenoiser(product, threads=threads)
    sample, timestep = torch.randn(3, 1, 2, 2), torch.tensor([0, 1, 999])
    prediction = denoiser(sample=sample, timestep=timestep)
    torch.testing.assert_close(prediction, sample * timestep.view(-1, 1, 1, 1))
    assert prediction.dtype == torch.float32
    assert (denoiser.backend, denoiser.device, denoiser.precision) == ("onnxruntime", "cpu", "fp32")


def test_onnx_runtime_takes_samples_that_are_views(product):
    sample = torch.randn(1, 2, 2, 2).transpose(0, 1)  # neither contiguous nor owner of its memory
    prediction = OnnxRuntimeDenoiser(product, threads=1)(sample, torch.tensor([2, 3]))
    torch.testing.assert_close(prediction, sample * torch.tensor([2.0, 3.0]).view(-1, 1, 1, 1))


def test_what_onnx_runtime_returns_is_not_overwritten_by_the_next_call(product):
    denoiser = OnnxRuntimeDenoiser(product, threads=1)
    first = denoiser(torch.ones(1, 1, 2, 2), torch.tensor([5]))
    denoiser(torch.zeros(1, 1, 2, 2), torch.tensor([7]))
    assert first.flatten().tolist() == [5, 5, 5, 5]


def test_onnx_runtime_keeps_to_its_threads(product):
    options = OnnxRuntimeDenoiser(product, threads=1).session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 1)
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_pytorch_predicts_what_the_model_does_and_keeps_no_graph(small_teacher):
    loaded = model_folder.load(small_teacher)
    denoiser = PyTorchDenoiser(loaded.model, loaded.family)
    inputs = loaded.family.example_inputs(loaded.model.config, 2)
    prediction = denoiser(**inputs)
    with torch.no_grad():
        expected = loaded.model(inputs["sample"], inputs["timestep"]).sample
    assert torch.equal(prediction, expected) and not prediction.requires_grad
    assert (denoiser.backend, denoiser.device, denoiser.precision) == ("pytorch", "cpu", "fp32")
