"""Teachers that learn to read while they learn to draw, and those that take over what others have read."""

from collections import Counter

import diffusers
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPTextModel, CLIPTokenizer
from typer.testing import CliRunner

from edgediff.artifacts import read_json
from edgediff.cli import app
from edgediff.data import fashion_mnist
from edgediff.encoding.learned_text import LearnedText, Spoken
from edgediff.encoding.vocabulary import merges
from edgediff.errors import BadInputError
from edgediff.recipe import TeacherRecipe, check
from edgediff.train_teacher import train_teacher

TRAINING = {"steps": 2, "batch_size": 4, "warmup_steps": 1, "checkpoint_every": 1, "learning_rate": 0.01}
EVALUATE = {"num_images": 6, "num_inference_steps": 2, "guidance_scale": 2.0, "guidance_scales": [1, 2]}
AUTOENCODER = {
    **{"in_channels": 1, "out_channels": 1, "sample_size": 32, "latent_channels": 4, "shift_factor": 0.0},
    **{"block_out_channels": [8, 8, 8], "layers_per_block": 1, "norm_num_groups": 4},
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
}
TEXT = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
UNET = {
    **{"sample_size": 8, "in_channels": 4, "out_channels": 4, "layers_per_block": 1, "norm_num_groups": 4},
    **{"block_out_channels": [8], "attention_head_dim": 2, "cross_attention_dim": 16},
    **{"down_block_types": ["CrossAttnDownBlock2D"], "up_block_types": ["CrossAttnUpBlock2D"]},
}
MMDIT = {
    **{"sample_size": 8, "patch_size": 1, "in_channels": 4, "out_channels": 4, "num_layers": 2},
    **{"attention_head_dim": 8, "num_attention_heads": 2, "caption_projection_dim": 16, "pos_embed_max_size": 8},
    **{"joint_attention_dim": 32, "pooled_projection_dim": 32},
}
CAPTIONS = ["a photo of a sneaker", "a photo of an ankle boot", "a photo of a T-shirt/top"]


@pytest.fixture(scope="module")
def captioned(tmp_path_factory):
    """Twelve images of two classes in either split, in a folder a class, with a caption beside each."""
    folder = tmp_path_factory.mktemp("captioned")
    for split in ("train", "test"):
        images = fashion_mnist.framed(fashion_mnist.load(split, fashion_mnist.packaged_folder()))
        for label in (7, 9):
            place = folder / split / str(label)
            place.mkdir(parents=True)
            for index in (images.labels == label).nonzero()[0][:6]:
                Image.fromarray(images.pixels[index, 0]).save(place / f"{index:05}.png")
                (place / f"{index:05}.txt").write_text(images.captions(torch.tensor([index]))[0])
    return folder


@pytest.fixture(scope="module")
def autoencoder(captioned, tmp_path_factory):
    """What the command leaves."""
    folder = tmp_path_factory.mktemp("autoencoder")
    values = {"name": "tiny-vae", "config": AUTOENCODER, "data": {"name": str(captioned)}, "training": TRAINING}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    command = ["teacher", "train-autoencoder", str(folder / "recipe.yaml"), "--out", str(folder / "out"), "--json"]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert result.exit_code == 0
    assert yaml.safe_load(result.stdout) == {"autoencoder": str(folder / "out" / "vae")}
    return folder / "out"


def recipe(captioned, parts, **changes):
    values = {
        "name": "tiny-sd",
        "pipeline": "StableDiffusionPipeline",
        "parts": str(parts),
        "model": {"class_name": "UNet2DConditionModel", "config": UNET},
        "text_encoder": TEXT,
        "scheduler": {"prediction_type": "epsilon", "clip_sample": False, "steps_offset": 1},
        "data": {"name": str(captioned), "conditioning_dropout": 0.25},
        "training": TRAINING,
        "evaluate": EVALUATE,
    }
    return check({**values, **changes}, TeacherRecipe)


@pytest.fixture(scope="module")
def teacher(captioned, autoencoder, tmp_path_factory, quiet):
    return train_teacher(recipe(captioned, autoencoder), tmp_path_factory.mktemp("sd"), quiet, resume=False)


@pytest.fixture(scope="module")
def flow_teacher(captioned, teacher, tmp_path_factory, quiet):
    changes = {
        "name": "tiny-sd3",
        "pipeline": "StableDiffusion3Pipeline",
        "model": {"class_name": "SD3Transformer2DModel", "config": MMDIT},
        "text_encoder": None,
        "scheduler": {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 1.0},
    }
    out = tmp_path_factory.mktemp("sd3")
    return train_teacher(recipe(captioned, teacher, **changes), out, quiet, resume=False)


def test_the_autoencoder_of_the_command_is_a_stock_one_with_its_scores(autoencoder):
    assert diffusers.AutoencoderKL.from_pretrained(autoencoder / "vae").config.latent_channels == 4
    assert 0 < read_json(autoencoder / "vae" / "quality.json")["psnr"] < 60


def test_a_stock_pipeline_draws_from_the_captions_that_it_was_trained_on(teacher):
    stock = diffusers.DiffusionPipeline.from_pretrained(teacher)
    assert type(stock) is diffusers.StableDiffusionPipeline and stock.safety_checker is None
    drawing = {"num_inference_steps": 2, "output_type": "np"}
    one, other = (stock(words, generator=torch.Generator().manual_seed(0), **drawing).images for words in CAPTIONS[:2])
    assert one.shape[:3] == (1, 32, 32) and np.isfinite(one).all()
    assert np.abs(one - other).max() > 0


def test_the_text_encoder_is_trained_too(teacher, captioned):
    torch.manual_seed(0)
    fresh = LearnedText(TEXT, CAPTIONS).encoder.state_dict()
    learned = CLIPTextModel.from_pretrained(teacher / "text_encoder").state_dict()
    spread = {name: float((learned[name] - fresh[name]).abs().max()) for name in fresh if "layer_norm" in name}
    # Norms begin at ones and zeros whatever the seed, so that what differs now was learned.
    assert spread and max(spread.values()) > 1e-4


def test_the_card_says_how_to_ask_and_how_often_it_is_heard(teacher):
    card = (teacher / "README.md").read_text()
    assert "StableDiffusionPipeline.from_pretrained" in card and "pipeline_tag: text-to-image" in card
    assert "Class accuracy" in card and "guidance 2" in card
    accuracy = read_json(teacher / "quality.json")["class_accuracy"]
    assert [row["guidance_scale"] for row in accuracy["rows"]] == [1.0, 2.0] and accuracy["num_real"] == 12


def test_training_goes_on_with_text_encoder_and_model_alike(captioned, autoencoder, teacher, tmp_path, quiet):
    """One step and one more end where two at once do; at a constant rate, whose shape no number of steps changes."""

    def of(steps):
        return recipe(captioned, autoencoder, training={**TRAINING, "steps": steps, "lr_schedule": "constant"})

    straight = train_teacher(of(2), tmp_path / "straight", quiet, resume=False)
    train_teacher(of(1), tmp_path / "halves", quiet, resume=False)
    resumed = train_teacher(of(2), tmp_path / "halves", quiet, resume=True)
    for weights in ("unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"):
        one, other = load_file(straight / weights), load_file(resumed / weights)
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_snapshot_has_the_text_encoder_of_its_step(captioned, autoencoder, tmp_path, quiet):
    settings = {**TRAINING, "lr_schedule": "constant"}
    kept = recipe(captioned, autoencoder, snapshots=[1], training=settings)
    train_teacher(kept, tmp_path / "two", quiet, resume=False)
    of_one = recipe(captioned, autoencoder, training={**settings, "steps": 1})
    expected = train_teacher(of_one, tmp_path / "one", quiet, resume=False)
    for weights in ("unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"):
        one, other = load_file(tmp_path / "two" / "snapshots" / "1" / weights), load_file(expected / weights)
        assert all(torch.equal(one[name], other[name]) for name in one)
    stock = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "two" / "snapshots" / "1")
    assert stock(CAPTIONS[0], num_inference_steps=2, output_type="np").images.shape[:3] == (1, 32, 32)


def test_a_flow_teacher_takes_over_what_another_has_read(flow_teacher, teacher):
    without_t5 = {"text_encoder_3": None, "tokenizer_3": None}
    stock = diffusers.DiffusionPipeline.from_pretrained(flow_teacher, **without_t5)
    assert type(stock) is diffusers.StableDiffusion3Pipeline
    assert "text_encoder_3=None, tokenizer_3=None)" in (flow_teacher / "README.md").read_text()
    images = stock(CAPTIONS[0], num_inference_steps=2, output_type="np", height=32, width=32).images
    assert images.shape[:3] == (1, 32, 32) and np.isfinite(images).all()
    # What SD 3 pools is the last state of the text's end, which the identity projects.
    ids = stock.tokenizer(CAPTIONS[1], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        pooled = stock.text_encoder(ids).text_embeds
        states = CLIPTextModel.from_pretrained(teacher / "text_encoder")(ids)
    torch.testing.assert_close(pooled, states.pooler_output)


def test_what_batches_say_is_what_the_stock_pipeline_says(teacher):
    stock = diffusers.DiffusionPipeline.from_pretrained(teacher)
    text = LearnedText(TEXT, CAPTIONS)
    text.tokenizer, text.encoder = stock.tokenizer, stock.text_encoder
    told = text.tokens([CAPTIONS[1], "", CAPTIONS[0], CAPTIONS[1]])
    with torch.no_grad():
        said = Spoken(text.encoder)(told(torch.tensor([0, 1, 2, 3])))["encoder_hidden_states"]
        expected, nothing = stock.encode_prompt(CAPTIONS[1], "cpu", 1, True)
        silence = Spoken(text.encoder)(told.unconditional(1))["encoder_hidden_states"]
    # Batches of other sizes add up in other orders: a few units in the last place.
    for row, of_stock in (
        (said[0], expected[0]),
        (said[3], expected[0]),
        (said[1], nothing[0]),
        (silence[0], nothing[0]),
    ):
        torch.testing.assert_close(row, of_stock, atol=1e-5, rtol=0)
    assert (said[2] - said[0]).abs().max() > 1e-4


def test_the_vocabulary_holds_the_captions_words_and_spells_others(tmp_path):
    LearnedText(TEXT, CAPTIONS).tokenizer.save_pretrained(tmp_path)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path)
    assert tokenizer.model_max_length == 77
    assert tokenizer.tokenize("A photo of an ankle boot") == [
        f"{word}</w>" for word in ["a", "photo", "of", "an", "ankle", "boot"]
    ]
    spelt = tokenizer.tokenize("a zebra")
    assert "".join(spelt).replace("</w>", " ").strip() == "a zebra" and tokenizer.unk_token not in spelt


def test_pairs_are_joined_by_how_often_they_stand_and_then_by_name():
    assert merges(Counter({"ab": 2, "abc": 1})) == [("a", "b</w>"), ("a", "b"), ("ab", "c</w>")]
    assert merges(Counter({"zy": 1, "ba": 1})) == merges(Counter({"ba": 1, "zy": 1}))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"text_encoder": {**TEXT, "hiden_size": 8}},
            "hiden_size: unknown key, did you mean: hidden_size",
        ),
        ({"text_encoder": {**TEXT, "vocab_size": 8}}, "text_encoder.vocab_size: unknown key"),
        ({"text_encoder": {**TEXT, "num_attention_heads": 3}}, "text_encoder: CLIPTextModel refuses it"),
        ({"text_encoder": {**TEXT, "hidden_size": 8}}, "hidden_size is not the model's cross_attention_dim: 8, 16"),
        ({"pipeline": "StableDiffusionXLPipeline"}, "needs `text_encoder_2`|cannot be trained with one"),
    ],
)
def test_a_text_encoder_that_cannot_be_is_refused_before_the_training(
    captioned, autoencoder, tmp_path, quiet, changes, said
):
    with pytest.raises(BadInputError, match=said):
        train_teacher(recipe(captioned, autoencoder, **changes), tmp_path / "out", quiet, resume=False)
    assert not (tmp_path / "out" / "checkpoints").exists()
