"""The whole line on a class-conditional teacher in latents: autoencoder, teacher, student, all made here in seconds."""

import json

import pytest
import torch
import yaml
from diffusers import AutoencoderKL, DiTPipeline
from PIL import Image
from safetensors.torch import load_file

from edgediff import diagnostics, pipeline
from edgediff.artifacts import read_json
from edgediff.data import fashion_mnist
from edgediff.encoding import latents
from edgediff.errors import BadInputError
from edgediff.recipe import AutoencoderRecipe, Recipe, TeacherRecipe, check
from edgediff.report import report
from edgediff.run import ROLES, Run
from edgediff.train_autoencoder import train_autoencoder
from edgediff.train_teacher import train_teacher

TRAINING = {"steps": 4, "batch_size": 4, "warmup_steps": 1, "checkpoint_every": 2}
EVALUATE = {"num_images": 8, "num_inference_steps": 3, "batch_size": 4, "guidance_scale": 2.0}
AUTOENCODER = {
    **{"in_channels": 1, "out_channels": 1, "sample_size": 28, "latent_channels": 4},
    **{"block_out_channels": [8, 8, 8], "layers_per_block": 1, "norm_num_groups": 4},
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
}
TRANSFORMER = {
    **{"num_attention_heads": 4, "attention_head_dim": 8, "num_layers": 3, "sample_size": 7, "patch_size": 1},
    **{"in_channels": 4, "out_channels": 4, "num_embeds_ada_norm": 3},
}


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Images of the first three classes of Fashion-MNIST, in a sub-folder each: 24 to train with, 24 to test with."""
    folder = tmp_path_factory.mktemp("labelled")
    for split in ("train", "test"):
        images = fashion_mnist.load(split, fashion_mnist.packaged_folder())
        for label in range(3):
            place = folder / split / str(label)
            place.mkdir(parents=True)
            for index in (images.labels == label).nonzero()[0][:8]:
                Image.fromarray(images.pixels[index, 0]).save(place / f"{index:05}.png")
    return folder


@pytest.fixture(scope="module")
def autoencoder(labelled, tmp_path_factory, quiet):
    values = {"name": "vae", "config": AUTOENCODER, "data": {"name": str(labelled)}, "training": TRAINING}
    recipe = check(values, AutoencoderRecipe)
    return train_autoencoder(recipe, tmp_path_factory.mktemp("autoencoder"), quiet, resume=False)


@pytest.fixture(scope="module")
def teacher_recipe(labelled, autoencoder):
    values = {
        "name": "tiny-dit",
        "model": {"class_name": "DiTTransformer2DModel", "config": TRANSFORMER},
        "scheduler": {"num_train_timesteps": 1000, "prediction_type": "epsilon", "clip_sample": False},
        "pipeline": "DiTPipeline",
        "parts": str(autoencoder.parent),
        "data": {"name": str(labelled), "conditioning_dropout": 0.25},
        "training": TRAINING,
        "evaluate": EVALUATE,
    }
    return check(values, TeacherRecipe)


@pytest.fixture(scope="module")
def teacher(teacher_recipe, tmp_path_factory, quiet):
    return train_teacher(teacher_recipe, tmp_path_factory.mktemp("teacher"), quiet, resume=False)


@pytest.fixture(scope="module")
def run(teacher, labelled, tmp_path_factory, quiet):
    values = {
        "teacher": str(teacher),
        "data": {"name": str(labelled), "conditioning_dropout": 0.25, "random_conditioning": 0.5},
        "prune": {"ratio": 0.5, "depth": {"keep": 2, "by": "block_influence", "num_images": 4}},
        "distill": {"training": TRAINING, "cache": {"targets": 16}},
        "export": {"batch_sizes": [1, 3]},
        "benchmark": {"batch_sizes": [1], "iterations": 2, "warmup_iterations": 1},
        "evaluate": EVALUATE,
    }
    made = Run(tmp_path_factory.mktemp("runs") / "latent")
    pipeline.compress(made, check(values, Recipe), quiet)
    return made


def test_an_autoencoder_whose_sides_cannot_be_halved_is_refused_before_any_work(labelled, tmp_path, quiet):
    levels = {"block_out_channels": [8] * 4, "down_block_types": ["DownEncoderBlock2D"] * 4}
    config = {**AUTOENCODER, **levels, "up_block_types": ["UpDecoderBlock2D"] * 4}
    recipe = check(
        {"name": "vae", "config": config, "data": {"name": str(labelled)}, "training": TRAINING}, AutoencoderRecipe
    )
    with pytest.raises(BadInputError, match="sample_size 28 cannot be halved 3 times"):
        train_autoencoder(recipe, tmp_path / "vae", quiet, resume=False)
    assert not (tmp_path / "vae").exists()


def test_an_autoencoder_of_images_below_a_window_has_no_similarity(labelled, tmp_path, quiet):
    levels = {"block_out_channels": [8, 8], "down_block_types": ["DownEncoderBlock2D"] * 2}
    config = {**AUTOENCODER, **levels, "up_block_types": ["UpDecoderBlock2D"] * 2, "sample_size": 8}
    recipe = check(
        {"name": "vae", "config": config, "data": {"name": str(labelled)}, "training": TRAINING}, AutoencoderRecipe
    )
    folder = train_autoencoder(recipe, tmp_path / "vae", quiet, resume=False)
    assert set(read_json(folder / "quality.json")) == {"psnr"}


def test_the_autoencoder_is_a_stock_one_whose_latents_have_unit_spread(autoencoder, labelled):
    loaded = AutoencoderKL.from_pretrained(autoencoder)
    scores = read_json(autoencoder / "quality.json")
    assert scores["psnr"] > 0 and loaded.config.scaling_factor != AutoencoderKL().config.scaling_factor
    images = torch.stack([torch.rand(1, 28, 28, generator=torch.Generator().manual_seed(i)) for i in range(4)])
    with torch.no_grad():
        coded = loaded.encode(images * 2 - 1).latent_dist.mean * loaded.config.scaling_factor
        expected = loaded.decode(coded / loaded.config.scaling_factor).sample
    # The decoder of the project undoes what its encoder did to the latents; batches add up in other orders.
    torch.testing.assert_close(latents.Decoder(autoencoder.parent, batch_size=3)(coded), expected, atol=1e-4, rtol=0)


def test_the_teacher_is_a_stock_pipeline_that_draws_by_class(teacher):
    # Its guidance always takes label 1000 for "no class", which only ImageNet's models have.
    drawing = {"guidance_scale": 1.0, "num_inference_steps": 1, "output_type": "np"}
    images = DiTPipeline.from_pretrained(teacher)(class_labels=[0, 2], **drawing).images
    assert images.shape[:3] == (2, 28, 28)
    assert "tiny-dit" in (teacher / "README.md").read_text()


def test_a_student_is_one_too_with_fewer_blocks_and_channels(run):
    student = DiTPipeline.from_pretrained(run.student)
    config = student.transformer.config
    assert (config.num_layers, config.num_attention_heads) == (2, 2)
    assert student.vae.config.latent_channels == 4
    drawing = {"guidance_scale": 1.0, "num_inference_steps": 1, "output_type": "np"}
    assert student(class_labels=[1], **drawing).images.shape[1:3] == (28, 28)


def test_the_report_says_what_the_cache_saved(run):
    cache = read_json(run.report)["training"]["cache"]
    page = (run.path / "report.html").read_text()
    assert cache["computed"] == 16 and f"{cache['read']:,.0f} targets read, 16 computed" in page


def test_the_report_knows_its_teacher_by_model_and_autoencoder(run, teacher, quiet):
    found, config = read_json(run.report)["teacher_sha256"], teacher / "vae" / "config.json"
    assert found != read_json(run.pruned / "manifest.json")["inputs"]["teacher"]
    recipe, before = check(yaml.safe_load(run.recipe.read_text()), Recipe), config.read_text()
    assert report(run, recipe, quiet).teacher_sha256 == found
    config.unlink()  # the student's may be the same file
    config.write_text(json.dumps({**json.loads(before), "scaling_factor": 2.0}))
    assert report(run, recipe, quiet).teacher_sha256 != found
    config.write_text(before)
    report(run, recipe, quiet)


def test_every_stage_left_its_figures(run):
    quality, latency = read_json(run.quality), read_json(run.latency)
    assert {row["role"] for row in quality["rows"]} == {"floor", *ROLES}
    profile = quality["profile"]
    assert profile["guidance_scale"] == 2.0 and not profile["clip_sample"]  # latents have no range to clip to
    accuracy = quality["class_accuracy"]
    measured = [(row["role"], row["guidance_scale"]) for row in accuracy["rows"]]
    assert measured == [(role, scale) for scale in (1.0, 2.0, 4.0) for role in ROLES]
    assert accuracy["num_images"] == 8 and accuracy["num_real"] == 24
    assert {row["role"] for row in latency["rows"] if row["status"] == "measured"} == set(ROLES)
    assert latency["profile"]["forwards"] == 2  # of a step, as guidance takes
    for row in latency["rows"]:
        assert row["image_ms"] == pytest.approx(row["step_p50_ms"] * 3 * 2 / row["batch_size"])
    assert "3 steps of 2 forwards, as guidance takes" in (run.path / "report.html").read_text()
    for role in ROLES:
        assert load_file(run.samples(role))["samples"].shape == (8, 1, 28, 28)  # decoded
        assert read_json(run.onnx(role) / "parity.json")["cases"]
    assert load_file(run.diagnosis / diagnostics.MAP)["squared_error"].shape[1:] == (
        7,
        7,
    )  # where the model errs: in latents
    page, card = (run.path / "report.html").read_text(), (run.path / "README.md").read_text()
    assert "block_influence" in page and "Class accuracy" in page
    assert "Class accuracy" in card and "DiTPipeline.from_pretrained" in card


def test_latents_are_made_once_and_serve_every_stage(run):
    kept = sorted(path.name for path in run.encoded.iterdir())
    assert kept == ["latents-test", "latents-train"]


def test_parts_that_the_pipeline_needs_are_missed_before_the_training(teacher_recipe, tmp_path, quiet):
    without = teacher_recipe.model_copy(update={"parts": str(tmp_path)})
    with pytest.raises(BadInputError, match="DiTPipeline needs `vae`"):
        train_teacher(without, tmp_path / "out", quiet, resume=False)


def test_a_schedule_that_nothing_can_be_trained_with_is_named(teacher_recipe, tmp_path, quiet):
    changed = teacher_recipe.model_copy(update={"scheduler": {"_class_name": "KarrasVeScheduler"}})
    with pytest.raises(BadInputError, match="KarrasVeScheduler cannot be trained with"):
        train_teacher(changed, tmp_path / "out", quiet, resume=False)
