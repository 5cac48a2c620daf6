"""Pipeline folders: what loads, what is refused, and how that is worded."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from edgediff import model_folder
from edgediff.artifacts import write_manifest
from edgediff.errors import BadInputError, CorruptArtifactError, EdgeDiffError

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(small_teacher, tmp_path):
    return shutil.copytree(small_teacher, tmp_path / "teacher")


def refused(folder, kind=BadInputError):
    with pytest.raises(kind) as caught:
        model_folder.load(folder)
    assert isinstance(caught.value, EdgeDiffError)
    return f"{caught.value.message} hint: {caught.value.hint}"


def test_what_a_loaded_folder_says(folder):
    loaded = model_folder.load(folder)
    assert loaded.sample_shape == (1, 28, 28)
    assert not loaded.model.training
    assert loaded.scheduler.config.prediction_type == "epsilon"
    assert loaded.family.name == "unet2d"


@pytest.fixture
def lone(folder, tmp_path):
    """What `model.save_pretrained` and `scheduler.save_pretrained` leave in one folder."""
    (tmp_path / "lone").mkdir()
    for name in ("unet/config.json", WEIGHTS, "scheduler/scheduler_config.json"):
        shutil.copy(folder / name, tmp_path / "lone")
    return tmp_path / "lone"


def test_a_folder_that_is_the_model_itself(folder, lone):
    loaded, expected = model_folder.load(lone), model_folder.load(folder)
    assert (
        loaded.folder == model_folder.component(lone) == lone and loaded.scheduler.config == expected.scheduler.config
    )
    assert all(torch.equal(loaded.model.state_dict()[name], of) for name, of in expected.model.state_dict().items())
    assert model_folder.pipeline_class(lone) == "DDPMPipeline" and loaded.sha256 != expected.sha256


def test_a_lone_model_without_a_schedule_is_refused(lone):
    (lone / "scheduler_config.json").unlink()
    assert "`scheduler_config.json` is enough" in refused(lone)


def test_a_lone_model_of_a_pipeline_with_other_parts_is_refused(lone):
    config = json.loads((lone / "config.json").read_text())
    (lone / "config.json").write_text(json.dumps({**config, "_class_name": "UNet2DConditionModel"}))
    assert "lacks `model_index.json`" in refused(lone)


def test_the_hash_of_a_lone_model_follows_its_schedule(lone):
    before = model_folder.fingerprint(lone)
    value = json.loads((lone / "scheduler_config.json").read_text())
    (lone / "scheduler_config.json").write_text(json.dumps({**value, "beta_end": 0.03}))
    assert model_folder.fingerprint(lone) != before


def test_half_precision_weights_load_as_float32(folder):
    values = load_file(folder / WEIGHTS)
    save_file({name: value.half() for name, value in values.items()}, folder / WEIGHTS)
    model = model_folder.load(folder).model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, values[name].half().float())


@pytest.mark.parametrize("missing", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"])
def test_a_folder_without_a_config(folder, missing):
    (folder / missing).unlink()
    assert missing in refused(folder)


def test_no_folder_at_all(tmp_path):
    assert "not found" in refused(tmp_path / "nowhere")


def test_pickled_weights_are_refused_and_never_opened(folder):
    (folder / WEIGHTS).unlink()
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"not even a pickle")
    found = refused(folder)
    assert "pickled" in found and "safe_serialization=True" in found


def test_no_weights(folder):
    (folder / WEIGHTS).unlink()
    assert "weights not found" in refused(folder)


@pytest.mark.parametrize("keep", [4, 1000, -100])
def test_truncated_weights(folder, keep):
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:keep])
    assert "damaged or incomplete" in refused(folder, CorruptArtifactError)


def test_weights_of_another_config_are_never_loaded_halfway(folder):
    path = folder / "unet" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "block_out_channels": [8, 32]}))
    assert "do not fit each other" in refused(folder, CorruptArtifactError)


def test_a_missing_tensor_is_not_filled_with_noise(folder):
    values = load_file(folder / WEIGHTS)
    values.pop("conv_in.weight")
    save_file(values, folder / WEIGHTS)
    refused(folder, CorruptArtifactError)


def test_an_unsupported_class(folder):
    path = folder / "unet" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "_class_name": "UNet1DModel"}))
    assert "UNet1DModel" in refused(folder)


@pytest.mark.parametrize(
    "change",
    [{"layers_per_block": "two"}, {"down_block_types": ["NoBlock2D"]}, {"norm_num_groups": 5}, {"in_channels": None}],
)
def test_a_config_that_makes_no_model(folder, change):
    path = folder / "unet" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert "do not fit each other" in refused(folder, CorruptArtifactError)


@pytest.mark.parametrize("content", ["[]", "{", ""])
def test_configs_that_are_no_objects(folder, content):
    for config in ("scheduler/scheduler_config.json", "unet/config.json"):
        (folder / config).write_text(content)
        assert config in refused(folder, CorruptArtifactError)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prediction_type": "flow_prediction"}, "flow_prediction hint: supported: epsilon"),
        ({"beta_schedule": "wavy"}, "wavy"),
        ({"num_train_timesteps": "many"}, "scheduler_config.json"),
    ],
)
def test_a_scheduler_that_cannot_be_used(folder, change, said):
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert said in refused(folder)


def test_the_scheduler_of_a_sampler_is_the_same_noise_schedule(folder):
    path = folder / "scheduler" / "scheduler_config.json"
    config = {"_class_name": "DDIMScheduler", "num_train_timesteps": 500, "prediction_type": "v_prediction"}
    path.write_text(json.dumps(config))
    scheduler = model_folder.load(folder).scheduler
    assert (scheduler.config.num_train_timesteps, scheduler.config.prediction_type) == (500, "v_prediction")


@pytest.mark.parametrize("name", ["EDMDPMSolverMultistepScheduler", "ScoreSdeVpScheduler"])
def test_a_schedule_that_knows_no_betas_is_refused(folder, name):
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({"_class_name": name, "num_train_timesteps": 1000, "sigma_min": 0.002}))
    assert f"{name} knows no betas" in refused(folder)


@pytest.mark.parametrize(
    "config", [{}, {"_class_name": "DPMSolverSDEScheduler", "beta_start": 0.001}, {"_class_name": "LCMScheduler"}]
)
def test_a_schedule_is_of_betas_by_its_config_or_by_its_class(folder, config):
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    assert model_folder.load(folder).scheduler.config.beta_start == config.get("beta_start", 0.0001)


def test_latents_are_not_clipped_where_their_sampler_says_nothing_of_it(folder):
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({"_class_name": "PNDMScheduler"}))
    assert model_folder.load(folder).scheduler.config.clip_sample  # of pixels
    (folder / "vae").mkdir()
    (folder / "vae" / "config.json").write_text("{}")
    assert not model_folder.load(folder).scheduler.config.clip_sample
    path.write_text(json.dumps({"_class_name": "DDIMScheduler", "clip_sample": True}))
    assert model_folder.load(folder).scheduler.config.clip_sample  # as it was trained to be drawn from


@pytest.mark.parametrize("name", [WEIGHTS, "unet/config.json", "scheduler/scheduler_config.json"])
def test_the_hash_follows_everything_that_is_read(folder, name):
    before = model_folder.load(folder).sha256
    if name == WEIGHTS:
        values = load_file(folder / WEIGHTS)
        save_file({key: value + 1 for key, value in values.items()}, folder / WEIGHTS)
    else:
        value = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**value, "note": "harmless"}))
    assert model_folder.load(folder).sha256 != before


def test_a_flipped_bit_is_found_where_there_is_a_manifest(folder):
    write_manifest(folder, stage="prune", config={}, inputs={})
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (folder / WEIGHTS).write_bytes(content)
    assert WEIGHTS in refused(folder, CorruptArtifactError)


def test_a_saved_folder_loads_where_edgediff_cannot_be_imported(folder, without_edgediff):
    assert without_edgediff(folder, "pipeline.unet.config.block_out_channels") == "[16, 32]"
