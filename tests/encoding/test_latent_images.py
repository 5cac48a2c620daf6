"""What a latent model trains on: latents, with what the model is told of the same images."""

import shutil

import diffusers
import pytest
import torch
from diffusers import DDPMScheduler
from small_pipelines import LATENTS

from edgediff.data.conditioned import ClassLabels
from edgediff.data.order import visited
from edgediff.encoding import latents, prompts
from edgediff.encoding.images import LatentImages
from edgediff.encoding.latents import LatentCache
from edgediff.encoding.prompts import PromptCache
from edgediff.errors import BadInputError
from edgediff.recipe import DataConfig
from edgediff.samples import Samples
from edgediff.training.batches import Noising

ALL = torch.arange(20)
COLOURS = ("red", "a red", "b", "red a")


@pytest.fixture
def captioned(photos):
    """The photographs, with captions beside them of which every fourth is the same."""
    for number, path in enumerate(sorted((photos / "train").glob("*.png"))):
        path.with_suffix(".txt").write_text(COLOURS[number % len(COLOURS)])
    return photos


@pytest.fixture
def encoded(teachers, captioned, load, tmp_path, output):
    """A function (teacher's name) → the training images as that teacher's model sees them."""

    def of(name="sd"):
        images = load(captioned, output)
        cache = latents.encode(tmp_path / f"{name} latents", images, teachers(name), output=output)
        told = prompts.encode(tmp_path / f"{name} prompts", images.captions(ALL), teachers(name), output=output)
        return LatentImages(cache, told)

    return of


@pytest.mark.parametrize(
    ("teacher", "kind"),
    [
        ("sd", diffusers.UNet2DConditionModel),
        ("sdxl", diffusers.UNet2DConditionModel),
        ("sd3", diffusers.SD3Transformer2DModel),
    ],
)
def test_batches_are_what_the_stock_model_takes(encoded, teachers, teacher, kind):
    images = encoded(teacher)
    assert (len(images), images.shape) == (20, LATENTS)
    indices = torch.tensor([5, 2, 5])
    batch, conditioning = images.batch(indices), images.conditioning(indices)
    assert batch.shape == (3, *LATENTS) and {len(rows) for rows in conditioning.values()} == {3}
    if teacher == "sdxl":
        added = {name: conditioning.pop(name) for name in ("text_embeds", "time_ids")}
        conditioning["added_cond_kwargs"] = added
    model = kind.from_pretrained(teachers(teacher) / ("transformer" if teacher == "sd3" else "unet"))
    with torch.no_grad():
        prediction = model(batch, timestep=torch.tensor([10, 20, 10]), **conditioning).sample
    assert prediction.shape == batch.shape
    torch.testing.assert_close(prediction[0], prediction[2])
    assert not torch.allclose(prediction[0], prediction[1])


def test_what_is_told_of_an_image_is_of_the_one_that_is_there(captioned, encoded, tmp_path, output):
    damaged = captioned / "train" / "04.png"
    damaged.write_bytes(damaged.read_bytes()[:50])
    images = encoded("sdxl")
    both = torch.tensor([4, 5])
    assert torch.equal(images.batch(both)[0], images.batch(both)[1])
    assert all(torch.equal(*rows) for rows in images.conditioning(both).values())
    ids = images.conditioning(torch.tensor([0, 19]))["time_ids"]
    assert ids[:, :2].tolist() == [[20, 24], [39, 24]]


def test_everything_is_in_the_two_caches(encoded, captioned, tmp_path):
    images = encoded()
    expected = images.batch(ALL), images.conditioning(ALL)
    shutil.rmtree(captioned)
    opened = LatentImages(LatentCache.open(tmp_path / "sd latents"), PromptCache.open(tmp_path / "sd prompts"))
    assert torch.equal(opened.batch(ALL), expected[0])
    assert torch.equal(opened.conditioning(ALL)["encoder_hidden_states"], expected[1]["encoder_hidden_states"])
    assert opened.sha256 == images.sha256 and opened.name == "photos/train as latents"


def test_the_digest_follows_both_caches(encoded, teachers, tmp_path, output):
    images = encoded()
    others = prompts.encode(tmp_path / "others", ["b"] * 20, teachers("sd"), output=output)
    digests = {LatentImages(images.latents, conditions).sha256 for conditions in (images.conditions, others, None)}
    assert len(digests) == 3


def test_samples_of_the_latents_are_drawn_by_seed(encoded):
    images = encoded()
    indices = torch.tensor([3, 3, 8])
    drawn = images.drawn(indices, [1, 2, 1])
    assert torch.equal(drawn, images.latents.drawn(indices, [1, 2, 1]))
    assert not torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], images.batch(indices)[0])


def test_a_training_sees_another_sample_of_a_latent_at_every_entry(encoded):
    images = encoded()
    found = Samples(images, images.conditions.unconditional)
    noising = Noising(found, DDPMScheduler(), DataConfig(), seed=0, device=torch.device("cpu"))
    shown = visited(torch.arange(40), count=20, seed=0)
    twice = (shown == shown[0]).nonzero().flatten()
    first, second = noising(0, twice).x0
    (mode,) = images.batch(shown[:1])
    assert len(twice) == 2 and not torch.equal(first, second) and not torch.equal(first, mode)
    assert torch.equal(noising(7, twice.flip(0)).x0, torch.stack([second, first]))  # a function of the entry


def test_latents_with_class_labels_or_with_nothing(encoded):
    cache = encoded().latents
    assert LatentImages(cache).conditioning(ALL) == {}
    labelled = LatentImages(cache, ClassLabels(ALL * 10))
    assert labelled.conditioning(torch.tensor([7, 1]))["class_labels"].tolist() == [70, 10]


def test_caches_of_different_numbers_of_images_are_refused(encoded, teachers, tmp_path, output):
    others = prompts.encode(tmp_path / "others", ["b"] * 19, teachers("sd"), output=output)
    with pytest.raises(BadInputError, match="what is told of 19 images does not fit 20 images"):
        LatentImages(encoded().latents, others)
