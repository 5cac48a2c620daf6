"""`edgediff prune --compare`: every way of pruning at one size, ranked by the loss before any distillation."""

import json

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel
from PIL import Image
from small_unet import SMALL_UNET
from typer.testing import CliRunner

from edgediff import compare_prunings, model_folder
from edgediff.artifacts import read_json
from edgediff.cli import app
from edgediff.plan import outline
from edgediff.pruning import BLOCK_MEASURES, IMPORTANCES
from edgediff.recipe import Recipe, check
from edgediff.run import Run

SIZE = 200_000


@pytest.fixture(scope="module")
def values(tmp_path_factory):
    """A recipe over a small teacher with layers to lose, and sixteen images a split."""
    folder = tmp_path_factory.mktemp("compared")
    torch.manual_seed(0)
    model_folder.save(
        folder / "teacher", UNet2DModel(**{**SMALL_UNET, "layers_per_block": 2}), DDPMScheduler(num_train_timesteps=40)
    )
    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        (folder / "images" / split).mkdir(parents=True)
        for index in range(16):
            pixels = generator.integers(0, 255, (28, 28), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / split / f"{index:02}.png")
    return {
        "teacher": str(folder / "teacher"),
        "data": {"name": str(folder / "images")},
        "prune": {"params": SIZE, "num_images": 2, "depth": None},
        "evaluate": {"num_images": 8, "num_inference_steps": 2, "batch_size": 8},
    }


def test_ways_meet_the_size_and_differ_in_nothing_else(values):
    recipe = check(values, Recipe)
    found = dict(compare_prunings.ways(outline(recipe), {"macs": 10**9}, recipe.prune))
    assert found["width, taylor"].macs == found["depth, oracle"].depth.macs == 10**9
    assert found["depth, evenly"].depth.keep == 2  # of two: a budget above the teacher keeps all
    assert {way.num_images for way in found.values()} == {recipe.prune.num_images}
    none = dict(compare_prunings.ways(outline(recipe), {"params": 10}, recipe.prune))
    assert none["depth, evenly"] is None and none["width, random"].params == 10


@pytest.fixture(scope="module")
def compared(values, tmp_path_factory):
    """The run folder of a comparison made through the command line, and what was printed of it."""
    run = Run(tmp_path_factory.mktemp("runs") / "run")
    recipe = run.path.with_suffix(".yaml")
    recipe.write_text(json.dumps(values))
    result = CliRunner().invoke(app, ["prune", "--compare", "-r", str(recipe), "-o", str(run.path), "--json"])
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert printed["requested"] and printed["params_after"] <= SIZE  # the student that was asked for, as without it
    return run, printed["comparison"]


@pytest.mark.slow
def test_every_way_is_ranked_or_says_why_it_is_closed(compared):
    _, found = compared
    names = {row["name"] for row in found["rows"]}
    ways = {f"width, {name}" for name in IMPORTANCES} | {f"depth, {name}" for name in BLOCK_MEASURES}
    assert ways <= names | set(found["not_run"])
    assert "tinyfusion" in " ".join(found["not_run"])  # it learns over layers of one kind, which a U-Net has not
    assert found["rows"][0]["name"] == "teacher"


@pytest.mark.slow
def test_students_are_as_large_as_asked_at_most_and_sorted_by_loss(compared):
    _, found = compared
    students = found["rows"][1:]
    assert all(0.4 * SIZE < row["cost"]["params"] <= SIZE for row in students)
    assert [row["loss"] for row in students] == sorted(row["loss"] for row in students)
    assert len({row["loss"] for row in students}) > len(students) // 2  # ways differ in what they keep


@pytest.mark.slow
def test_the_students_stay_and_a_second_comparison_makes_nothing_anew(compared, values, quiet):
    run, found = compared
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("manifest.json")}
    assert len(before) == len(found["rows"])  # of all students but the teacher, and of the one that was asked for
    again = compare_prunings.compare_prunings(run, check(values, Recipe), quiet)
    assert again.model_dump(mode="json") == found == {key: read_json(run.comparison)[key] for key in found}
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_size_out_of_reach_is_refused_before_anything_is_made(values, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({**values, "prune": {"params": 10}}))
    out = tmp_path / "run"
    result = CliRunner().invoke(app, ["prune", "--compare", "-r", str(recipe), "-o", str(out)])
    assert isinstance(result.exception, Exception) and "no student of this teacher has 10 parameters" in str(
        result.exception
    )
    assert not out.exists()
