"""The verb `prune`: artefact, record of what was reached, skipping, refusals."""

import json

import pytest
from diffusers import DDPMPipeline

from edgediff.artifacts import read_json
from edgediff.errors import BadInputError, CorruptArtifactError
from edgediff.prune import prune
from edgediff.run import Run


def test_the_pruned_folder_is_a_stock_pipeline_with_its_record(small_recipe, tmp_path, quiet):
    run = Run(tmp_path / "run")
    reached = prune(run, small_recipe(), quiet)
    pipeline = DDPMPipeline.from_pretrained(run.pruned)
    assert tuple(pipeline.unet.config.block_out_channels) == (8, 16)
    assert reached.requested == {"ratio": 0.5}
    assert reached.channels_removed == 0.5
    assert 0.7 < reached.params_removed < 0.8
    assert 0.7 < reached.macs_removed < 0.8
    manifest = read_json(run.pruned / "manifest.json")
    assert manifest["reached"] == json.loads(reached.model_dump_json())
    assert all(len(group["kept"]) <= group["width"] for group in manifest["kept_channels"])


def test_a_second_run_is_skipped_and_a_changed_recipe_is_not(small_recipe, tmp_path, quiet):
    run = Run(tmp_path / "run")
    first = prune(run, small_recipe(), quiet)
    made = read_json(run.pruned / "manifest.json")["made"]
    written = (run.pruned / "manifest.json").stat().st_mtime_ns
    assert prune(run, small_recipe(), quiet) == first
    assert (run.pruned / "manifest.json").stat().st_mtime_ns == written
    assert prune(run, small_recipe(prune={"importance": "random"}), quiet).importance == "random"
    assert read_json(run.pruned / "manifest.json")["made"]["versions"] == made["versions"]


def test_an_importance_that_looks_at_images_records_them(small_recipe, tmp_path, quiet):
    recipe = small_recipe(prune={"importance": "taylor", "num_images": 2})
    assert prune(Run(tmp_path / "run"), recipe, quiet).importance == "taylor"
    assert set(read_json(tmp_path / "run" / "pruned" / "manifest.json")["inputs"]) == {"teacher", "images"}


@pytest.mark.parametrize(("target", "limit"), [("params", 60_000), ("macs", 9_000_000)])
def test_targets_other_than_a_ratio(target, limit, small_recipe, tmp_path, quiet):
    recipe = small_recipe(prune={"ratio": None, target: limit})
    reached = prune(Run(tmp_path / "run"), recipe, quiet)
    assert reached.requested == {target: limit}
    assert 0 < reached.params_removed < 1


def test_a_damaged_artefact_is_found_and_named(small_recipe, tmp_path, quiet):
    run = Run(tmp_path / "run")
    prune(run, small_recipe(), quiet)
    weights = run.pruned / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(CorruptArtifactError, match="diffusion_pytorch_model"):
        prune(run, small_recipe(), quiet)


def test_a_ratio_that_leaves_a_level_without_channels(small_recipe, tmp_path, quiet):
    with pytest.raises(BadInputError, match=r"down_blocks\.0"):
        prune(Run(tmp_path / "run"), small_recipe(prune={"ratio": 0.99}), quiet)
    assert not (tmp_path / "run").exists()
