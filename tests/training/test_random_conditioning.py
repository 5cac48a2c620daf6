"""Random conditioning: what samples are told that they do not show, and where it comes from."""

import numpy as np
import pytest
import small_pipelines
import torch
from diffusers import DDPMScheduler
from PIL import Image

from edgediff import data, model_folder, samples
from edgediff.data.conditioned import ClassLabels, Conditioned
from edgediff.encoding import prompts
from edgediff.errors import BadInputError
from edgediff.recipe import DataConfig
from edgediff.samples import Samples
from edgediff.training.batches import Noising

ENTRIES = torch.arange(400)


@pytest.fixture(scope="module")
def labelled():
    images = data.load(DataConfig(name="fashion-mnist-20k"), "train", shape=(1, 28, 28))
    return Conditioned(images, ClassLabels.of(images))


def batch_of(labelled, others=None, **config):
    found = Samples(labelled, lambda count: {"class_labels": torch.full((count,), 99)}, others)
    cpu = torch.device("cpu")
    return Noising(found, DDPMScheduler(), DataConfig(**config), seed=3, device=cpu)(0, ENTRIES)


def test_a_share_of_samples_is_told_conditions_that_no_image_here_has(labelled):
    plain = batch_of(labelled)
    exchanged = batch_of(labelled, ClassLabels(torch.arange(10, 15)), random_conditioning=0.25)
    rows, told = exchanged.exchanged, exchanged.conditioning["class_labels"]
    assert 70 < rows.sum() < 130 and plain.exchanged is None
    assert set(told[rows].tolist()) == set(range(10, 15))
    assert torch.equal(told[~rows], plain.conditioning["class_labels"][~rows])
    assert torch.equal(exchanged.sample, plain.sample)
    both = batch_of(labelled, ClassLabels(torch.arange(10, 15)), random_conditioning=0.25, conditioning_dropout=0.5)
    silent = both.conditioning["class_labels"] == 99
    assert torch.equal(both.exchanged, rows & ~silent) and 150 < silent.sum() < 250


@pytest.fixture(scope="module")
def captioned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("captioned")
    for split in ("train", "test"):
        (folder / split).mkdir()
        for index in range(4):
            Image.fromarray(np.full((16, 16, 3), index, np.uint8)).save(folder / split / f"{index}.png")
            (folder / split / f"{index}.txt").write_text("a")
    return folder


def test_captions_may_come_from_a_file(captioned, tmp_path, quiet):
    teacher = model_folder.load(small_pipelines.stable_diffusion(tmp_path / "teacher"))
    (tmp_path / "captions.txt").write_text("red\n\nred a\n")
    config = DataConfig(name=str(captioned), random_conditioning=0.5, random_captions=str(tmp_path / "captions.txt"))
    samples.check(config, teacher, quiet)
    found = samples.learned(config, "train", teacher, tmp_path / "encoded", quiet)
    expected = prompts.encode(tmp_path / "expected", ["red", "red a"], teacher.folder, output=quiet)
    (name,) = expected.arguments
    assert torch.equal(found.others(torch.arange(2))[name], expected(torch.arange(2))[name])
    alone = DataConfig(name=str(captioned), random_conditioning=0.5)
    of_images = samples.learned(alone, "train", teacher, tmp_path / "encoded", quiet)
    assert len(of_images.others) == 4 and of_images.sha256 != found.sha256
    assert samples.learned(config, "test", teacher, tmp_path / "encoded", quiet).others is None


def test_captions_that_cannot_be_told_are_refused_before_any_work(captioned, tmp_path, quiet, small_teacher):
    teacher = model_folder.load(small_pipelines.stable_diffusion(tmp_path / "teacher"))
    (tmp_path / "captions.txt").write_text("\n")
    for file, said in (("captions.txt", "no captions in the file"), ("nowhere.txt", "file of captions not found")):
        config = DataConfig(name=str(captioned), random_conditioning=0.5, random_captions=str(tmp_path / file))
        with pytest.raises(BadInputError, match=said):
            samples.check(config, teacher, quiet)
    config = DataConfig(name="fashion-mnist-20k", random_conditioning=0.5, random_captions="captions.txt")
    with pytest.raises(BadInputError, match="told no captions"):
        samples.check(config, model_folder.load(small_teacher), quiet)
