"""The whole line on text-conditional teachers in latents: Stable Diffusion 1, XL and 3 in miniature, with engines."""

import diffusers
import numpy as np
import pytest
import small_pipelines
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from edgediff import pipeline
from edgediff.artifacts import read_json
from edgediff.backends.onnxruntime import OnnxRuntimeDenoiser
from edgediff.errors import BadInputError
from edgediff.recipe import Recipe, check
from edgediff.run import ROLES, Run

pytestmark = pytest.mark.slow  # minutes each, nearly all of them in exports of graphs

TOKENS = 77  # of CLIP, which exported graphs count on


@pytest.fixture(scope="module")
def captioned(tmp_path_factory):
    """Sixteen coloured images of either split, with a caption each."""
    folder, generator = tmp_path_factory.mktemp("captioned"), np.random.default_rng(0)
    for split in ("train", "test"):
        (folder / split).mkdir()
        for index in range(16):
            pixels = generator.integers(0, 255, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / split / f"{index:02}.png")
            (folder / split / f"{index:02}.txt").write_text("red a" if index % 2 else "a b")
    return folder


@pytest.fixture(
    scope="module",
    params=[
        "stable_diffusion",
        "stable_diffusion_3",
        "stable_diffusion_xl",
    ],
)
def run(request, captioned, tmp_path_factory, quiet):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(small_pipelines, "TOKENS", TOKENS)
        teacher = getattr(small_pipelines, request.param)(tmp_path_factory.mktemp("teachers") / request.param)
    values = {
        "teacher": str(teacher),
        "data": {"name": str(captioned), "conditioning_dropout": 0.2},
        "prune": {"ratio": 0.5},
        "distill": {
            "kd": "place,feature=0.1",
            "training": {"steps": 3, "batch_size": 4, "warmup_steps": 1, "checkpoint_every": 2},
        },
        "export": {"batch_sizes": [1, 3]},
        "build": {"backends": ["tensorrt_rtx"], "max_batch": 4},
        "benchmark": {"batch_sizes": [1], "iterations": 2, "warmup_iterations": 1},
        "evaluate": {"num_images": 8, "num_inference_steps": 2, "batch_size": 4, "guidance_scale": 3.0},
    }
    made = Run(tmp_path_factory.mktemp("runs") / request.param)
    pipeline.compress(made, check(values, Recipe), quiet)
    return made


def test_the_student_is_a_stock_pipeline_that_draws_from_text(run):
    stock = diffusers.DiffusionPipeline.from_pretrained(run.student)
    teacher = diffusers.DiffusionPipeline.from_pretrained(yaml.safe_load(run.recipe.read_text())["teacher"])
    assert type(stock) is type(teacher)
    images = stock("red a", num_inference_steps=2, output_type="np", height=16, width=16).images
    assert images.shape == (1, 16, 16, 3) and np.isfinite(images).all()


def test_every_stage_left_its_figures(run):
    quality, latency = read_json(run.quality), read_json(run.latency)
    assert {row["role"] for row in quality["rows"]} == {"floor", *ROLES}
    assert quality["profile"]["guidance_scale"] == 3.0 and not quality["profile"]["clip_sample"]
    assert quality["class_accuracy"] is None  # captions without classes
    assert ("flow" in quality["profile"]["sampler"]) == ("_3" in run.path.name)
    assert {row["role"] for row in latency["rows"] if row["status"] == "measured"} == set(ROLES)
    assert load_file(run.samples("student"))["samples"].shape == (8, 3, 16, 16)
    assert (run.engine("tensorrt_rtx") / "model.engine").stat().st_size > 0
    for name in ("latents-train", "prompts-train", "latents-test", "prompts-test"):
        assert (run.encoded / name / "manifest.json").is_file()


def test_a_graph_refuses_text_of_another_length_with_a_sentence(run):
    graph = OnnxRuntimeDenoiser(run.onnx("student") / "model.onnx")
    shapes = {name: [side if isinstance(side, int) else 1 for side in sides] for name, sides in graph.shapes.items()}
    inputs = {name: torch.zeros(shape) for name, shape in shapes.items()}
    assert torch.isfinite(graph(**inputs)).all()
    inputs["encoder_hidden_states"] = inputs["encoder_hidden_states"][:, :5]
    with pytest.raises(BadInputError, match="encoder_hidden_states"):
        graph(**inputs)
