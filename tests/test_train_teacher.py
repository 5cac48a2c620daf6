"""The verb `teacher train`, and what a name of a teacher means."""

import re
import shutil

import pytest
import yaml
from diffusers import DDPMPipeline, DiffusionPipeline
from safetensors.torch import load_file
from small_unet import SMALL_UNET

from edgediff import model_folder
from edgediff import teacher as teacher_module
from edgediff.artifacts import read_json, sha256
from edgediff.distill import distill
from edgediff.errors import BadInputError
from edgediff.output import Output
from edgediff.prune import prune
from edgediff.recipe import TeacherRecipe, check
from edgediff.run import Run
from edgediff.teacher import Teacher, resolve, zoo
from edgediff.train_teacher import train_teacher

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def recipe(photos):
    values = {
        "name": "tiny",
        "about": "Learns nothing in four steps.",
        "model": {"class_name": "UNet2DModel", "config": {**SMALL_UNET}},
        "scheduler": {"num_train_timesteps": 1000, "beta_schedule": "linear", "prediction_type": "epsilon"},
        "data": {"name": str(photos)},
        "training": {"steps": 4, "batch_size": 4, "checkpoint_every": 2, "precision": "bf16"},
        "evaluate": {"num_images": 6, "num_inference_steps": 2},
    }
    return check(values, TeacherRecipe)


@pytest.fixture(scope="module")
def trained(recipe, tmp_path_factory, quiet):
    return train_teacher(recipe, tmp_path_factory.mktemp("teachers") / "tiny", quiet, resume=False)


def test_the_folder_is_a_stock_pipeline_in_half_precision(trained):
    assert {str(value.dtype) for value in load_file(trained / WEIGHTS).values()} == {"torch.float16"}
    pipeline = DDPMPipeline.from_pretrained(trained)
    assert pipeline(num_inference_steps=1, output_type="np").images.shape == (1, 28, 28, 1)


def test_the_card_holds_recipe_scores_and_pictures(trained, recipe):
    _, front, body = (trained / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front)["params"] == Teacher("tiny", trained).summary()["params"] > 0
    assert recipe.about in body and "real images (floor)" in body and "checkpoint_every: 2" in body
    for picture in ("samples.png", "loss.svg"):
        assert f"({picture})" in body and (trained / picture).stat().st_size > 1000
    rows = read_json(trained / "quality.json")["rows"]
    assert [row["role"] for row in rows] == ["floor", "teacher"]


def test_a_trained_teacher_is_not_trained_again(trained, recipe, quiet):
    written = (trained / "manifest.json").stat().st_mtime_ns
    for changes in ({}, {"checkpoint_every": 3, "trackers": ()}):
        training = recipe.training.model_copy(update=changes)
        again = recipe.model_copy(update={"training": training})
        assert train_teacher(again, trained.parent, quiet, resume=False) == trained
    assert (trained / "manifest.json").stat().st_mtime_ns == written


def test_resuming_ends_with_the_same_weights(recipe, quiet, tmp_path):
    """Four steps at once, and two and two; at a constant rate, because the cosine's shape depends on the steps."""

    def of(steps):
        training = recipe.training.model_copy(update={"lr_schedule": "constant", "steps": steps})
        return recipe.model_copy(update={"training": training})

    straight = train_teacher(of(4), tmp_path / "straight", quiet, resume=False)
    train_teacher(of(2), tmp_path / "halves", quiet, resume=False)
    with pytest.raises(BadInputError, match="a finished training stands at step 2"):
        train_teacher(of(4), tmp_path / "halves", quiet, resume=False)
    told = []

    class Telling(Output):
        def say(self, text):
            told.append(text)

    resumed = train_teacher(of(4), tmp_path / "halves", Telling("quiet"), resume=True)
    assert "from here on with other settings than before: steps 2 → 4" in told
    assert read_json(resumed / "manifest.json")["resumed_at"] == [2]
    assert sha256(resumed / WEIGHTS) == sha256(straight / WEIGHTS)


def with_snapshots(recipe, *steps, total=4):
    training = recipe.training.model_copy(update={"lr_schedule": "constant", "steps": total})
    return recipe.model_copy(update={"training": training, "snapshots": steps})


def test_snapshots_are_stock_pipelines_of_the_average_on_the_way(recipe, quiet, tmp_path):
    """Also where the training was interrupted between them."""
    straight = train_teacher(with_snapshots(recipe, 1, 3), tmp_path / "straight", quiet, resume=False)
    train_teacher(with_snapshots(recipe, 1, total=2), tmp_path / "halves", quiet, resume=False)
    resumed = train_teacher(with_snapshots(recipe, 1, 3), tmp_path / "halves", quiet, resume=True)
    kept = {out: sorted(path.name for path in (out.parent / "snapshots").iterdir()) for out in (straight, resumed)}
    assert kept == {straight: ["1", "3"], resumed: ["1", "3"]}
    digests = [
        sha256(out / WEIGHTS)
        for step in ("1", "3")
        for out in (straight.parent / "snapshots" / step, resumed.parent / "snapshots" / step)
    ]
    assert digests[0] == digests[1] != digests[2] == digests[3] != sha256(straight / WEIGHTS)
    assert sha256(straight / WEIGHTS) == sha256(resumed / WEIGHTS)
    of_three = train_teacher(with_snapshots(recipe, total=3), tmp_path / "three", quiet, resume=False)
    assert sha256(of_three / WEIGHTS) == digests[2]
    assert DDPMPipeline.from_pretrained(straight.parent / "snapshots" / "3").unet.config.sample_size == 28


def test_a_student_learns_from_snapshots(recipe, photos, small_recipe, quiet, tmp_path):
    teacher = train_teacher(with_snapshots(recipe, 2), tmp_path / "t", quiet, resume=False)
    folders = [tmp_path / "t" / "snapshots" / "2", teacher]
    run = Run(tmp_path / "run")
    wanted = small_recipe(
        teacher=str(teacher), data={"name": str(photos)}, distill={"teachers": list(map(str, folders))}
    )
    prune(run, wanted, quiet)
    assert distill(run, wanted, quiet).steps == 6
    found = read_json(run.student / "manifest.json")["inputs"]["teacher"]
    assert found == "+".join(model_folder.fingerprint(folder) for folder in folders)


def test_a_snapshot_of_a_step_that_is_past_is_missed_before_the_training_goes_on(recipe, quiet, tmp_path):
    train_teacher(with_snapshots(recipe, total=2), tmp_path / "t", quiet, resume=False)
    with pytest.raises(BadInputError, match="snapshots: step 1 was not kept, and the training stands at step 2"):
        train_teacher(with_snapshots(recipe, 1, 3), tmp_path / "t", quiet, resume=True)
    assert not (tmp_path / "t" / "snapshots").exists()


def test_a_snapshot_beyond_the_training_is_refused(recipe):
    with pytest.raises(BadInputError, match="a snapshot of step 5 is beyond the 4 steps of training"):
        check({**recipe.model_dump(), "snapshots": [2, 5]}, TeacherRecipe)


@pytest.mark.parametrize(
    ("section", "values", "said"),
    [
        ("scheduler", {"beta_schedul": "linear"}, "scheduler.beta_schedul: unknown key, did you mean: beta_schedule"),
        ("scheduler", {"beta_schedule": "wavy"}, "scheduler: DDPMScheduler refuses it: wavy"),
        ("scheduler", {"prediction_type": "flow"}, "prediction type is not supported: flow"),
        ("model", {"sampel_size": 28}, "model.config.sampel_size: unknown key, did you mean: sample_size"),
        ("model", {"block_out_channels": [16]}, "model.config: UNet2DModel refuses it"),
        ("model", {"in_channels": 2, "out_channels": 2}, "2 channels"),
    ],
)
def test_what_diffusers_would_pass_over_is_refused(recipe, quiet, tmp_path, section, values, said):
    old = recipe.model.config if section == "model" else recipe.scheduler
    new = {**old, **values}
    changed = {"model": recipe.model.model_copy(update={"config": new})} if section == "model" else {section: new}
    with pytest.raises(BadInputError, match=re.escape(said)):
        train_teacher(recipe.model_copy(update=changed), tmp_path / "out", quiet, resume=False)
    assert not (tmp_path / "out").exists()


def test_images_that_the_card_will_lack_are_missed_before_the_training(recipe, photos, quiet, tmp_path):
    shutil.copytree(photos / "train", tmp_path / "photos" / "train")
    (tmp_path / "photos" / "test").mkdir()
    without = recipe.model_copy(update={"data": recipe.data.model_copy(update={"name": str(tmp_path / "photos")})})
    with pytest.raises(BadInputError, match="no images"):
        train_teacher(without, tmp_path / "out", quiet, resume=False)
    assert not (tmp_path / "out").exists()


def test_a_name_or_a_folder_is_a_teacher(trained, monkeypatch):
    assert resolve(str(trained)).folder == trained
    monkeypatch.setattr(teacher_module, "zoo", lambda: {"fashion-ddpm": Teacher("fashion-ddpm", trained)})
    assert resolve("fashion-ddpm").folder == trained
    with pytest.raises(BadInputError) as caught:
        resolve("fashion-dpm")
    assert "did you mean: fashion-ddpm" in caught.value.hint


def test_a_folder_without_a_card_says_so(small_teacher):
    with pytest.raises(BadInputError, match="no model card"):
        resolve(str(small_teacher)).card()


@pytest.mark.parametrize("name", sorted(zoo()))
def test_every_embedded_teacher_is_complete_and_small(name):
    folder = zoo()[name].folder
    assert sum(path.stat().st_size for path in folder.rglob("*")) < 10_000_000
    summary = zoo()[name].summary()
    index = read_json(folder / "model_index.json")
    left_out = {name: None for name in ("text_encoder_3", "tokenizer_3") if index.get(name) == [None, None]}
    pipeline = DiffusionPipeline.from_pretrained(folder, local_files_only=True, **left_out)
    model = pipeline.components.get("unet") or pipeline.components["transformer"]
    assert sum(value.numel() for value in model.parameters()) == summary["params"]
    assert f"{index['_class_name']}.from_pretrained" in zoo()[name].card()
