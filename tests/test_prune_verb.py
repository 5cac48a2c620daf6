"""The verb `prune`: artefact, record of what was reached, skipping, refusals; width, depth and both."""

import json

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, DiTTransformer2DModel, UNet2DModel
from small_unet import SMALL_UNET

from edgediff import families, model_folder, teacher
from edgediff.artifacts import read_json
from edgediff.errors import BadInputError, CorruptArtifactError
from edgediff.plan import outline, plan
from edgediff.prune import prune
from edgediff.results import Reached
from edgediff.run import Run

UNET = families.FAMILIES["UNet2DModel"]


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


DEPTH_UNET = {**SMALL_UNET, "layers_per_block": 2}


@pytest.fixture(scope="module")
def deep_teacher(tmp_path_factory):
    """A pipeline folder of an untrained U-Net with layers to lose."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("teachers") / "deep"
    model_folder.save(folder, UNet2DModel(**DEPTH_UNET), DDPMScheduler())
    return folder


@pytest.fixture(scope="module")
def transformer_teacher(tmp_path_factory):
    """A pipeline folder of an untrained class-conditional transformer of four blocks."""
    torch.manual_seed(0)
    model = DiTTransformer2DModel(
        **{"num_attention_heads": 4, "attention_head_dim": 4, "in_channels": 1, "out_channels": 1, "patch_size": 7},
        **{"num_layers": 4, "sample_size": 28, "num_embeds_ada_norm": 10, "norm_type": "ada_norm_zero"},
    )
    folder = tmp_path_factory.mktemp("teachers") / "transformer"
    model_folder.save(folder, model, DDPMScheduler())
    return folder


@pytest.fixture
def deep_recipe(small_recipe, deep_teacher):
    return lambda teacher=deep_teacher, **prune: small_recipe(teacher=str(teacher), prune={"ratio": None, **prune})


def test_depth_alone_gives_a_stock_pipeline_with_its_record(deep_recipe, tmp_path, quiet):
    run = Run(tmp_path / "run")
    reached = prune(run, deep_recipe(depth={"remove": 0.5, "by": "magnitude"}), quiet)
    pipeline = DDPMPipeline.from_pretrained(run.pruned)
    assert tuple(pipeline.unet.config.block_out_channels) == (16, 32)
    assert reached.requested == {"depth.remove": 0.5} and reached.kind == "depth-pruned"
    assert (reached.blocks_before, reached.blocks_after, len(reached.blocks_removed)) == (2, 1, 1)
    assert (reached.blocks_by, reached.importance, reached.channels_removed) == ("magnitude", "", 0)
    assert 0 < reached.params_removed < 1 and 0 < reached.macs_removed < 1
    manifest = read_json(run.pruned / "manifest.json")
    assert manifest["reached"] == json.loads(reached.model_dump_json())
    assert len(manifest["kept_blocks"]) == 1 and "kept_channels" not in manifest
    assert set(manifest["block_importance"]) == {*manifest["kept_blocks"], *reached.blocks_removed}
    assert prune(run, deep_recipe(depth={"remove": 0.5, "by": "magnitude"}), quiet) == reached


def test_depth_comes_before_width(deep_recipe, tmp_path, quiet):
    run = Run(tmp_path / "run")
    reached = prune(run, deep_recipe(ratio=0.5, depth={"keep": 1, "by": "first"}), quiet)
    unet = DDPMPipeline.from_pretrained(run.pruned).unet
    assert tuple(unet.config.block_out_channels) == (8, 16)
    assert len(UNET.blocks(unet.config)) == 1
    assert reached.requested == {"depth.keep": 1, "ratio": 0.5} and reached.kind == "depth- and width-pruned"
    assert (reached.blocks_after, reached.channels_removed, reached.importance) == (1, 0.5, "magnitude")
    shallow = prune(Run(tmp_path / "shallow"), deep_recipe(depth={"keep": 1, "by": "first"}), quiet)
    assert reached.params_after < shallow.params_after
    assert reached.blocks_removed == shallow.blocks_removed
    manifest = read_json(run.pruned / "manifest.json")
    assert manifest["kept_channels"] and len(manifest["kept_blocks"]) == 1


@pytest.mark.parametrize(
    ("depth", "message"),
    [
        ({"by": "block_influence", "num_images": 2}, "block_influence"),
        ({"by": "tinyfusion", "tinyfusion": {"steps": 2, "batch_size": 2, "num_images": 4}}, "tinyfusion"),
    ],
)
def test_blocks_of_a_conditional_transformer_are_chosen_by_images(
    depth, message, deep_recipe, transformer_teacher, tmp_path, quiet
):
    run = Run(tmp_path / "run")
    reached = prune(run, deep_recipe(transformer_teacher, depth={"remove": 0.5, **depth}), quiet)
    assert (reached.blocks_after, reached.blocks_before, reached.blocks_by) == (2, 4, message)
    assert model_folder.load(run.pruned).model.config["num_layers"] == 2
    assert set(read_json(run.pruned / "manifest.json")["inputs"]) == {"teacher", "images"}


def test_refined_weights_are_recorded(deep_recipe, tmp_path, quiet):
    plain, refined = (
        prune(Run(tmp_path / refine), deep_recipe(ratio=0.5, refine=refine), quiet) for refine in ("none", "svs_norm")
    )
    assert refined.refine == "svs_norm" and plain.params_after == refined.params_after
    weights = [model_folder.load(tmp_path / name / "pruned").model.conv_in.weight for name in ("none", "svs_norm")]
    assert not torch.equal(*weights)
    assert weights[0].norm().item() == pytest.approx(weights[1].norm().item(), rel=1e-4)


@pytest.mark.parametrize(
    ("depth", "message", "hint"),
    [
        ({"rule": "bk_tiny"}, "depth rule does not fit this teacher: bk_tiny", "no published rule does"),
        ({"remove": 0.1}, "removing 0.1 of 2 blocks removes none", "nearest: 0.5"),
        ({"keep": 9}, "more blocks to keep than this teacher can lose: 9", "it has 2"),
        ({"params": 5}, "no student of this teacher has 5 parameters", "reachable"),
        ({"keep": 1, "by": "tinyfusion"}, "tinyfusion needs blocks that can be bypassed one by one", "laptop_diff"),
    ],
)
def test_depths_that_cannot_be_are_refused(depth, message, hint, deep_recipe, tmp_path, quiet):
    with pytest.raises(BadInputError, match=message) as error:
        prune(Run(tmp_path / "run"), deep_recipe(depth={"by": "last", **depth}), quiet)
    assert hint in error.value.hint
    assert not (tmp_path / "run" / "pruned").exists()


def test_a_plan_knows_the_depth_and_what_choosing_costs(deep_recipe):
    by_weights = plan(deep_recipe(depth={"keep": 1, "by": "magnitude"}))
    by_images = plan(deep_recipe(depth={"keep": 1, "by": "oracle", "num_images": 64}))
    assert by_weights.before.params > by_weights.after.params
    assert by_weights.stages[0].what == "depth, by magnitude"
    assert by_images.stages[0].seconds > by_weights.stages[0].seconds
    both = plan(deep_recipe(ratio=0.5, depth={"keep": 1, "by": "last"}))
    assert both.stages[0].what == "depth, by last; width, by magnitude"
    assert list(both.widths_after.values()) == [8, 16] and both.after.params < by_weights.after.params


def test_a_choice_that_cannot_be_learned_is_refused_by_the_plan(deep_recipe):
    with pytest.raises(BadInputError, match="bypassed one by one"):
        plan(deep_recipe(depth={"keep": 1, "by": "tinyfusion"}))


def test_a_registered_teacher_is_planned_from_its_entry(small_recipe, monkeypatch):
    monkeypatch.setattr(teacher.hub, "cached", lambda repositories: None)
    monkeypatch.setattr(teacher.hub, "fetch", lambda sources: pytest.fail("a plan fetches nothing"))
    what = outline(small_recipe(teacher="ddpm-cifar10"))
    assert tuple(what.teacher_config["block_out_channels"]) == (128, 256, 256, 256)
    assert what.student_config["block_out_channels"] == (64, 128, 128, 128)


def test_widths_can_be_given_level_by_level(small_recipe, tmp_path, quiet):
    reached = prune(Run(tmp_path / "run"), small_recipe(prune={"ratio": None, "widths": [4, 24]}), quiet)
    assert list(reached.widths_after.values()) == [4, 24] and reached.asked == "widths 4, 24"
    with pytest.raises(BadInputError, match="2 levels, widths has 3"):
        outline(small_recipe(prune={"ratio": None, "widths": [4, 8, 24]}))


def test_records_from_before_depth_still_load():
    old = {
        **{"requested": {"ratio": 0.5}, "importance": "magnitude", "widths_before": {"a": 8}, "widths_after": {"a": 4}},
        **{"params_after": 10, "bytes_after": 40, "channels_removed": 0.5, "params_removed": 0.7, "macs_removed": 0.7},
    }
    reached = Reached.model_validate(old)
    assert reached.kind == "width-pruned" and reached.asked == "ratio 0.5" and reached.blocks_before is None
