"""The verb `generate`: a teacher's images as a data set, resumable, for data-free distillation."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small_pipelines
import torch
from diffusers import DDPMScheduler, UNet2DModel
from PIL import Image
from small_unet import SMALL_UNET

from edgediff import data, model_folder, samples, teacher
from edgediff.backends.pytorch import PyTorchDenoiser
from edgediff.diffusion.sampler import ddim, sample
from edgediff.distill import distill
from edgediff.encoding.text import TextEncoders
from edgediff.errors import BadInputError
from edgediff.generate import generate
from edgediff.prune import prune
from edgediff.quality import draw
from edgediff.recipe import DataConfig, GenerateConfig
from edgediff.run import Run
from edgediff.samples import Samples

CONFIG = GenerateConfig(num_images=5, num_inference_steps=3, batch_size=2)
DRAWN = GenerateConfig(num_images=30, num_inference_steps=2, batch_size=8, guidance_scale=2.0)


def files(folder):
    return sorted((folder / "train").glob("*.png"))


def table(folder):
    """What the folder's table says of every image."""
    lines = (folder / "train" / "metadata.jsonl").read_text().splitlines()
    return {row.pop("file_name"): row for row in map(json.loads, lines)}


def seeds(images):
    return [int(Path(images.encoded.where(index)).stem) for index in range(len(images))]


def read_back(out, loaded, tmp_path, quiet):
    """A data set of the folder as a training reads it: (seeds, what the model is told) of both splits together."""
    seen, told = [], []
    for split in ("train", "test"):
        config = DataConfig(name=str(out))
        found = samples.learned(config, split, loaded, tmp_path / "encoded", quiet)
        seen += seeds(data.load(config, split, shape=samples.image_shape(loaded)))
        told.append(found.conditioning(torch.arange(len(found))))
        assert found.shape == loaded.sample_shape and found.batch(torch.tensor([0])).isfinite().all()
    assert len(told[0]) == len(told[1])
    return seen, {name: torch.cat([of_split[name] for of_split in told]) for name in told[0]}


def test_images_are_the_teachers_of_their_seeds(small_teacher, quiet, tmp_path):
    out = generate(str(small_teacher), tmp_path / "images", CONFIG, quiet)
    assert [file.name for file in files(out)] == [f"{seed:08}.png" for seed in range(5)]
    loaded = model_folder.load(small_teacher)
    scheduler = ddim(loaded.scheduler.config, clip_sample=True)
    denoiser = PyTorchDenoiser(loaded.model, loaded.family)
    drawn = sample(denoiser, scheduler, [3], shape=(1, 28, 28), num_inference_steps=3, batch_size=1)
    expected = ((drawn[0, 0].clamp(-1, 1) + 1) * 127.5).round().numpy()
    # A pixel at the border of two bytes may fall on either side with another batch size.
    assert np.abs(np.asarray(Image.open(files(out)[3])).astype(float) - expected).max() <= 1


def test_what_a_model_drew_is_no_real_image(small_teacher, photos, quiet, tmp_path):
    loaded = model_folder.load(small_teacher)
    out = generate(str(small_teacher), tmp_path / "images", CONFIG, quiet)
    told = {split: data.drawn_by(DataConfig(name=str(out)), split) for split in ("train", "test")}
    assert told == dict.fromkeys(told, loaded.sha256) == {"train": loaded.sha256, "test": loaded.sha256}
    within = DataConfig(name=str(out / "train"))
    assert samples.kind(within, "train", loaded) == "images drawn by the teacher"
    assert samples.kind(within, "train", replace(loaded, sha256="0")) == "images drawn by another model"
    shutil.copytree(photos / "test", out / "test")  # a student of drawn images may be held against real ones
    told = [samples.kind(DataConfig(name=str(out)), split, loaded) for split in ("train", "test")]
    assert told == ["images drawn by the teacher", "real images"]


@pytest.mark.parametrize("manifest", [None, "[]", "{", '{"stage": "photography"}'])
def test_images_are_real_where_nothing_says_that_a_model_drew_them(manifest, photos, small_teacher, tmp_path):
    folder = shutil.copytree(photos, tmp_path / "photos")
    if manifest is not None:
        (folder / "manifest.json").write_text(manifest)
    for name in (str(folder), "fashion-mnist-20k"):
        assert samples.kind(DataConfig(name=name), "train", model_folder.load(small_teacher)) == "real images"


def test_an_interrupted_folder_is_completed(small_teacher, quiet, tmp_path):
    out = generate(str(small_teacher), tmp_path / "images", CONFIG, quiet)
    before = {file.name: file.stat().st_mtime_ns for file in files(out)}
    files(out)[1].unlink()
    generate(str(small_teacher), out, CONFIG.model_copy(update={"num_images": 6}), quiet)
    after = {file.name: file.stat().st_mtime_ns for file in files(out)}
    assert len(after) == 6
    assert {name for name in after if before.get(name) != after[name]} == {"00000001.png", "00000005.png"}


def test_other_settings_need_another_folder(small_teacher, quiet, tmp_path):
    out = generate(str(small_teacher), tmp_path / "images", CONFIG, quiet)
    with pytest.raises(BadInputError, match="made with another num_inference_steps"):
        generate(str(small_teacher), out, CONFIG.model_copy(update={"num_inference_steps": 4}), quiet)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(BadInputError, match="holds other files"):
        generate(str(small_teacher), tmp_path / "mine", CONFIG, quiet)


def test_latents_are_no_images(quiet, tmp_path):
    model = UNet2DModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8,), down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",), layers_per_block=1, norm_num_groups=4,
    )  # fmt: skip
    model_folder.save(tmp_path / "latent", model, DDPMScheduler())
    with pytest.raises(BadInputError, match="4 channels, so they are no images"):
        generate(str(tmp_path / "latent"), tmp_path / "images", CONFIG, quiet)


@pytest.fixture(scope="module")
def by_class(tmp_path_factory, quiet):
    """Thirty images of the embedded DiT, which are enough for either split to have some."""
    return generate("fashion-dit", tmp_path_factory.mktemp("by class") / "images", DRAWN, quiet)


def test_a_class_conditional_teacher_draws_its_classes_in_turn(by_class, quiet):
    assert [row["label"] for row in table(by_class).values()] == [seed % 10 for seed in range(30)]
    loaded = model_folder.load(teacher.resolve("fashion-dit").folder)

    class Turn:
        name, sha256, shape = "turn", "", (1, 28, 28)

        def __len__(self):
            return 10

        def conditioning(self, indices):
            return {"class_labels": indices % 10}

    reference = Samples(Turn(), lambda count: loaded.family.unconditional(loaded.model.config, count))
    expected = draw(PyTorchDenoiser(loaded.model, loaded.family), loaded, DRAWN, quiet, "teacher", reference).pixels
    drawn = np.stack([np.asarray(Image.open(file)) for file in files(by_class)])
    # Where batches of other sizes add up in another order, a pixel falls into the next byte.
    assert drawn.shape == (30, 28, 28) and np.abs(drawn.astype(int) - expected[:, 0]).max() <= 1


def test_labels_come_back_with_the_images_that_were_drawn_for_them(by_class, tmp_path, quiet):
    loaded = model_folder.load(teacher.resolve("fashion-dit").folder)
    seen, told = read_back(by_class, loaded, tmp_path, quiet)
    assert sorted(seen) == list(range(30)) and told["class_labels"].tolist() == [seed % 10 for seed in seen]


def test_distilling_a_class_conditional_student_without_a_data_set(by_class, small_recipe, quiet, tmp_path):
    run = Run(tmp_path / "run")
    recipe = small_recipe(teacher="fashion-dit", data={"name": str(by_class), "conditioning_dropout": 0.1})
    prune(run, recipe, quiet)
    assert distill(run, recipe, quiet).steps == 6


def test_some_classes_keep_their_numbers(tmp_path, quiet):
    config = DRAWN.model_copy(update={"classes": (7, 2), "num_images": 12, "num_inference_steps": 1})
    out = generate("fashion-dit", tmp_path / "images", config, quiet)
    found = data.load(DataConfig(name=str(out)), "train", shape=(1, 28, 28))
    assert found.class_labels(torch.arange(len(found))).tolist() == [(7, 2)[seed % 2] for seed in seeds(found)]


def test_classes_are_those_of_data_where_it_is_named(tmp_path, quiet):
    few = {"num_images": 6, "num_inference_steps": 1, "data": DataConfig(name="fashion-mnist-20k")}
    out = generate("fashion-dit", tmp_path / "images", DRAWN.model_copy(update=few), quiet)
    real = data.load(DataConfig(name="fashion-mnist-20k"), "train", shape=(1, 28, 28))
    assert [row["label"] for row in table(out).values()] == real.class_labels(torch.arange(6)).tolist()


def test_an_interrupted_folder_of_a_conditional_teacher_is_completed(tmp_path, quiet):
    few = DRAWN.model_copy(update={"num_images": 4, "num_inference_steps": 1})
    out = generate("fashion-dit", tmp_path / "images", few, quiet)
    before = {file.name: file.read_bytes() for file in files(out)}
    files(out)[1].unlink()
    generate("fashion-dit", out, few.model_copy(update={"first_seed": 3, "num_images": 9}), quiet)
    generate("fashion-dit", out, few, quiet)
    assert [file.name for file in files(out)] == list(table(out)) == [f"{seed:08}.png" for seed in range(12)]
    assert [row["label"] for row in table(out).values()] == [seed % 10 for seed in range(12)]
    assert all((out / "train" / name).read_bytes() == content for name, content in before.items())
    with pytest.raises(BadInputError, match="made with another classes or captions"):
        generate("fashion-dit", out, few.model_copy(update={"classes": (1,)}), quiet)


@pytest.fixture(scope="module")
def wanted(tmp_path_factory):
    """Three captions in a file, with an empty line."""
    file = tmp_path_factory.mktemp("captions") / "captions.txt"
    file.write_text("red a\n\n  b\na red ö\n", encoding="utf-8")
    return file


@pytest.mark.parametrize("kind", ["stable_diffusion", "stable_diffusion_xl", "stable_diffusion_3"])
def test_a_text_conditional_teacher_draws_captions_in_turn_and_they_come_back(kind, wanted, tmp_path, quiet):
    folder = getattr(small_pipelines, kind)(tmp_path / kind)
    config = DRAWN.model_copy(update={"captions": str(wanted), "num_inference_steps": 1})
    out = generate(str(folder), tmp_path / "images", config, quiet)
    captions = ["red a", "b", "a red ö"]
    assert [row["text"] for row in table(out).values()] == captions * 10
    assert np.asarray(Image.open(files(out)[0])).shape == (16, 16, 3)
    seen, told = read_back(out, model_folder.load(folder), tmp_path, quiet)
    said = TextEncoders(folder)(captions)
    assert sorted(seen) == list(range(30)) and set(said) <= set(told)
    assert not data.load(DataConfig(name=str(out)), "test", shape=(3, 16, 16)).has_classes  # captions are none
    for name, rows in said.items():  # what is kept is kept in half precision
        expected = rows[[seed % 3 for seed in seen]]
        torch.testing.assert_close(told[name], expected, atol=2e-3 * float(rows.abs().max()), rtol=0)


def test_captions_are_drawn_as_they_are_said(tmp_path, quiet):
    """The same seeds under one caption and under another are other images; under the same, the same."""
    folder = small_pipelines.stable_diffusion(tmp_path / "sd")
    drawn = []
    for number, caption in enumerate(("red", "a b", "red")):
        (tmp_path / "captions.txt").write_text(caption)
        few = {"num_images": 2, "num_inference_steps": 2, "captions": str(tmp_path / "captions.txt")}
        out = generate(str(folder), tmp_path / str(number), DRAWN.model_copy(update=few), quiet)
        drawn.append([file.read_bytes() for file in files(out)])
    assert drawn[0] == drawn[2] != drawn[1]


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("fashion-ddpm", {"classes": (1,)}, "classes: the teacher is told nothing"),
        ("fashion-ddpm", {"data": DataConfig()}, "data: the teacher is told nothing"),
        ("fashion-dit", {"captions": "c.txt"}, "captions: the teacher is told class_labels"),
        ("fashion-dit", {"classes": (3, 10)}, "the teacher knows no class 10"),
        ("fashion-sd", {"classes": (1,)}, "classes: the teacher is told encoder_hidden_states"),
        ("fashion-sd", {}, "the teacher draws what captions ask for, and there are none"),
        ("fashion-sd", {"captions": "nothing.txt"}, "file of captions not found: `nothing.txt`"),
    ],
)
def test_what_a_teacher_cannot_be_asked_for_is_refused_before_any_work(name, changes, said, tmp_path, quiet):
    with pytest.raises(BadInputError, match=said) as caught:
        generate(name, tmp_path / "images", DRAWN.model_copy(update=changes), quiet)
    assert caught.value.hint and not (tmp_path / "images").exists()


def test_a_model_without_a_class_for_none_is_drawn_unguided_or_refused(tmp_path, quiet):
    torch.manual_seed(0)
    model_folder.save(tmp_path / "classes", UNet2DModel(**SMALL_UNET, num_class_embeds=3), DDPMScheduler())
    with pytest.raises(BadInputError, match="cannot be guided"):
        generate(str(tmp_path / "classes"), tmp_path / "images", DRAWN, quiet)
    few = DRAWN.model_copy(update={"guidance_scale": 1.0, "num_images": 4, "num_inference_steps": 1})
    out = generate(str(tmp_path / "classes"), tmp_path / "images", few, quiet)
    assert [row["label"] for row in table(out).values()] == [0, 1, 2, 0]


def test_one_source_of_what_is_asked_for_is_enough():
    with pytest.raises(ValueError, match="at most one of classes, captions and data; given: classes, captions"):
        GenerateConfig(classes=(1,), captions="c.txt")


def test_the_command_says_what_it_wrote(edgediff, tmp_path):
    command = ["generate", "-t", "fashion-dit", "-o", tmp_path / "out", "--json"]
    code, out, _ = edgediff(*command, "num_images=2", "num_inference_steps=1", "classes=[4]")
    assert (code, json.loads(out)) == (0, {"images": str(tmp_path / "out")})
    assert [row["label"] for row in table(tmp_path / "out").values()] == [4, 4]


def test_distilling_without_a_data_set(small_teacher, small_recipe, quiet, tmp_path):
    out = generate(str(small_teacher), tmp_path / "images", CONFIG, quiet)
    images = data.load(DataConfig(name=str(out)), "train", shape=(1, 28, 28))
    assert len(images) >= 1 and torch.isfinite(images.batch(torch.tensor([0]))).all()
    run, recipe = Run(tmp_path / "run"), small_recipe(data={"name": str(out)}, distill={"diffusion_weight": 0})
    prune(run, recipe, quiet)
    assert distill(run, recipe, quiet).steps == 6
