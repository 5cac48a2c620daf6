"""The cache of latents: what the VAE says, made once, to the last byte the same however often it was interrupted."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import small_pipelines
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from small_pipelines import LATENTS

from edgediff.artifacts import verify
from edgediff.encoding import latents
from edgediff.encoding.latents import LatentCache
from edgediff.errors import BadInputError, CorruptArtifactError, StageFailedError

SHARD_BYTES = 4_000  # four images, two batches
ALL = torch.arange(20)


class Counting:
    """Images that remember how many of them were asked for."""

    def __init__(self, images):
        self.images, self.asked = images, 0

    def __getattr__(self, name):
        return getattr(self.images, name)

    def __len__(self):
        return len(self.images)

    def batch(self, indices):
        self.asked += len(indices)
        return self.images.batch(indices)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr("edgediff.encoding.store.SHARD_BYTES", SHARD_BYTES)


@pytest.fixture
def encode(teachers, photos, load, tmp_path, output):
    """A function → (the cache, how many images were encoded for it)."""

    def run(folder=tmp_path / "latents", teacher=None, source=photos, side=small_pipelines.RESOLUTION, batch_size=2):
        images = Counting(load(source, output, side))
        cache = latents.encode(folder, images, teacher or teachers("sd"), batch_size=batch_size, output=output)
        return cache, images.asked

    return run


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.glob("shard-*")}


def a_teacher(folder, **config):
    """A folder with a VAE, which is all that latents need."""
    small_pipelines.autoencoder(**config).save_pretrained(folder / "vae", safe_serialization=True)
    return folder


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 255
    path.write_bytes(content)


def test_latents_are_the_vaes_scaled_as_the_model_sees_them(encode, load, photos, teachers):
    cache, asked = encode()
    vae = AutoencoderKL.from_pretrained(teachers("sd") / "vae")
    with torch.no_grad():
        expected = vae.encode(load(photos).batch(ALL)).latent_dist
    assert (len(cache), cache.shape, asked) == (20, LATENTS, 20)
    assert cache.mean(ALL).dtype == torch.float32
    # Half precision keeps 11 bits.
    torch.testing.assert_close(cache.mean(ALL), expected.mean * 0.18215, rtol=2**-10, atol=1e-6)
    _, std = cache.rows.read(ALL, "mean", "std")
    torch.testing.assert_close(std.float(), expected.std * 0.18215, rtol=2**-10, atol=1e-6)
    assert torch.equal(cache.mean(torch.tensor([7, 3, 7])), cache.mean(ALL)[[7, 3, 7]])


@pytest.mark.parametrize(
    ("config", "shift", "scale"),
    [
        ({"shift_factor": 0.25, "scaling_factor": 2.0}, 0.25, 2.0),
        (
            {"latents_mean": (1.0, 2.0, 3.0, 4.0), "latents_std": (1.0, 2.0, 4.0, 8.0), "scaling_factor": 0.5},
            torch.tensor([1.0, 2.0, 3.0, 4.0]).view(4, 1, 1),
            0.5 / torch.tensor([1.0, 2.0, 4.0, 8.0]).view(4, 1, 1),
        ),
    ],
)
def test_shifts_and_scales_are_those_of_the_vaes_config(encode, load, photos, tmp_path, config, shift, scale):
    cache, _ = encode(teacher=a_teacher(tmp_path / "teacher", **config))
    with torch.no_grad():
        expected = small_pipelines.autoencoder().encode(load(photos).batch(ALL)).latent_dist
    torch.testing.assert_close(cache.mean(ALL), (expected.mean - shift) * scale, rtol=2**-10, atol=2e-3)
    _, std = cache.rows.read(ALL, "mean", "std")
    torch.testing.assert_close(std.float(), expected.std * scale, rtol=2**-10, atol=1e-6)


def test_a_sample_is_a_function_of_its_seed_and_of_the_distribution(encode):
    cache, _ = encode()
    together = cache.drawn(torch.tensor([4, 9]), [100, 200])
    assert torch.equal(together[1:], cache.drawn(torch.tensor([9]), [200]))
    assert not torch.equal(together[1:], cache.drawn(torch.tensor([9]), [201]))
    mean, std = (values[0].float() for values in cache.rows.read(torch.tensor([4]), "mean", "std"))
    drawn = cache.drawn(torch.full((2000,), 4), list(range(2000)))
    normal = (drawn - mean) / std
    # 2000 x 256 numbers of N(0, 1): means of 2000 deviate by 0.022, the largest of 256 by less than five times that.
    assert normal.mean(dim=0).abs().max() < 0.11
    assert normal.std() == pytest.approx(1, abs=0.01)


def test_killed_in_the_middle_it_goes_on_to_the_same_bytes(encode, photos, teachers, tmp_path):
    script = """
import os, signal, sys
from pathlib import Path
from edgediff import data
from edgediff.encoding import latents, store
from edgediff.output import Output
from edgediff.recipe import DataConfig

folder, photos, teacher = sys.argv[1:]
store.SHARD_BYTES = 4_000
images = data.load(DataConfig(name=photos), "train", shape=(3, 16, 16))
batch = images.batch

def dying(indices):
    if 10 in indices.tolist():
        os.kill(os.getpid(), signal.SIGKILL)
    return batch(indices)

images.batch = dying
latents.encode(Path(folder), images, Path(teacher), batch_size=2, output=Output("quiet"))
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    arguments = [str(tmp_path / "killed"), str(photos), str(teachers("sd"))]
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, env=environment)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(contents(tmp_path / "killed")) == 2
    with pytest.raises(BadInputError, match="not finished, it has 8 of 20 rows"):
        LatentCache.open(tmp_path / "killed")
    _, asked = encode(folder=tmp_path / "killed")
    assert asked == 12
    encode(folder=tmp_path / "straight")
    assert contents(tmp_path / "killed") == contents(tmp_path / "straight")
    assert len(contents(tmp_path / "straight")) == 5


def test_a_shard_that_the_manifest_does_not_know_is_made_again(encode, tmp_path):
    """Killed after the shard was written and before the manifest was."""
    encode()
    whole = contents(tmp_path / "latents")
    manifest = json.loads((tmp_path / "latents" / "manifest.json").read_text())
    for record in (manifest["rows"], manifest["files"]):
        del record["shard-00004.safetensors"]
    (tmp_path / "latents" / "manifest.json").write_text(json.dumps(manifest))
    flip(tmp_path / "latents" / "shard-00004.safetensors", -1)
    cache, asked = encode()
    assert (len(cache), asked) == (20, 4) and contents(tmp_path / "latents") == whole


def test_what_is_finished_is_not_made_again_and_progress_begins_where_it_stopped(encode, output, tmp_path):
    encode()
    assert output.shown == [("encode latents", 20, 0)] and output.advanced == 20
    _, asked = encode()
    assert asked == 0 and len(output.shown) == 1
    (tmp_path / "latents" / "shard-00001.safetensors").unlink()
    encode()
    assert output.shown[1] == ("encode latents", 20, 16) and output.advanced == 24


@pytest.mark.parametrize("damage", ["flipped", "cut", "header", "missing"])
def test_a_damaged_shard_is_named_and_made_again_alone(encode, output, tmp_path, monkeypatch, damage):
    before, _ = encode()
    expected, digest, whole = before.mean(ALL), before.sha256, contents(tmp_path / "latents")
    path = tmp_path / "latents" / "shard-00002.safetensors"
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-10])
    else:  # in the last row's last number, or in the length of the header
        flip(path, -1 if damage == "flipped" else 7)
    opened = LatentCache.open(tmp_path / "latents")
    assert torch.equal(opened.mean(torch.arange(8)), expected[:8])
    with pytest.raises(CorruptArtifactError, match=r"damaged: .*shard-00002\.safetensors"):
        opened.drawn(torch.tensor([11]), [0])
    # With other sizes of batches and shards too, rows stay where the manifest has them.
    monkeypatch.setattr("edgediff.encoding.store.SHARD_BYTES", 1_000)
    mended, asked = encode(batch_size=3)
    assert asked == 4 and "shard-00002" in output.said[0] and len(output.said) == 1
    torch.testing.assert_close(mended.mean(ALL), expected, rtol=2**-9, atol=1e-5)
    path.unlink()
    mended, _ = encode()
    assert contents(tmp_path / "latents") == whole and mended.sha256 == digest
    verify(tmp_path / "latents")


@pytest.mark.parametrize("changed", ["vae", "images", "resolution"])
def test_a_cache_of_something_else_is_refused_by_name(encode, teachers, photos, changed):
    encode()
    if changed == "images":
        (photos / "train" / "05.png").unlink()
    others = {"vae": {"teacher": teachers("other sd")}, "images": {}, "resolution": {"side": 32}}
    with pytest.raises(BadInputError, match=f"the latents cache was made with another {changed} ") as caught:
        encode(**others[changed])
    assert "delete this one" in caught.value.hint


def test_once_encoded_neither_vae_nor_images_are_needed(encode, photos, tmp_path):
    teacher = a_teacher(tmp_path / "teacher")
    expected = encode(teacher=teacher)[0].mean(ALL)
    shutil.rmtree(teacher)
    shutil.rmtree(photos)
    cache = LatentCache.open(tmp_path / "latents")
    assert torch.equal(cache.mean(ALL), expected) and cache.name == "photos/train"


def test_latents_tell_whose_they_are(encode, photos):
    damaged = photos / "train" / "04.png"
    damaged.write_bytes(damaged.read_bytes()[:50])
    cache, _ = encode()
    assert cache.shown(torch.tensor([3, 4, 5])).tolist() == [3, 5, 5]
    assert torch.equal(cache.mean(torch.tensor([4])), cache.mean(torch.tensor([5])))


def test_time_ids_are_original_size_crop_and_target_size(encode):
    """Images are resized until they cover 16x16: 20x24 becomes 16x19.2, 39x24 becomes 26x16."""
    cache, _ = encode()
    ids = cache.time_ids(torch.tensor([0, 4, 19]))
    assert ids.dtype == torch.float32
    assert ids.tolist() == [[20, 24, 0, 2, 16, 16], [24, 24, 0, 0, 16, 16], [39, 24, 5, 0, 16, 16]]


def test_a_full_disk_is_named_and_what_was_finished_is_kept(encode, tiny_disk, monkeypatch):
    monkeypatch.setattr("edgediff.encoding.store.SHARD_BYTES", 8_000)
    filler = tiny_disk / "filler"
    filler.write_bytes(b"0" * (shutil.disk_usage(tiny_disk).free - 24_000))
    with pytest.raises(StageFailedError, match="no space left"):
        encode(folder=tiny_disk / "latents")
    filler.unlink()
    cache, asked = encode(folder=tiny_disk / "latents")
    assert len(cache) == 20 and 0 < asked < 20


def test_latents_that_are_not_finite_stop_it(encode, tmp_path):
    teacher = a_teacher(tmp_path / "teacher")
    path = teacher / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["quant_conv.bias"][0] = float("nan")
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(StageFailedError, match="half precision cannot hold: latents 0 to 1"):
        encode(teacher=teacher)


def test_weights_of_half_precision_are_found_and_loaded_in_full(encode, tmp_path):
    teacher = tmp_path / "teacher"
    small_pipelines.autoencoder().half().save_pretrained(teacher / "vae", variant="fp16", safe_serialization=True)
    found, expected = encode(teacher=teacher)[0], encode(tmp_path / "full", a_teacher(tmp_path / "full teacher"))[0]
    # The weights' own rounding, through some ten layers.
    torch.testing.assert_close(found.mean(ALL), expected.mean(ALL), rtol=0, atol=5e-3)


def test_weights_in_several_files_are_one_vae(encode, tmp_path):
    teacher = tmp_path / "teacher"
    vae = small_pipelines.autoencoder()
    vae.save_pretrained(teacher / "vae", safe_serialization=True, max_shard_size="10KB")
    files = sorted((teacher / "vae").glob("*.safetensors"))
    assert len(files) > 1
    expected = encode(tmp_path / "one", a_teacher(tmp_path / "one teacher"))[0]
    assert torch.equal(encode(teacher=teacher)[0].mean(ALL), expected.mean(ALL))
    files[0].unlink()
    with pytest.raises(BadInputError, match=f"weights not found: .*{files[0].name}"):
        encode(teacher=teacher)


def test_bad_vaes_are_refused_in_one_sentence(encode, tmp_path):
    def refusal(prepare):
        teacher = tmp_path / prepare.__name__
        a_teacher(teacher)
        prepare(teacher / "vae")
        with pytest.raises((BadInputError, CorruptArtifactError)) as caught:
            encode(folder=tmp_path / f"{prepare.__name__} latents", teacher=teacher)
        return caught.value

    def missing(vae):
        shutil.rmtree(vae)

    def pickled(vae):
        (vae / "diffusion_pytorch_model.safetensors").rename(vae / "diffusion_pytorch_model.bin")

    def weightless(vae):
        (vae / "diffusion_pytorch_model.safetensors").unlink()

    def cut(vae):
        path = vae / "diffusion_pytorch_model.safetensors"
        path.write_bytes(path.read_bytes()[:1000])

    def unlike_its_config(vae):
        config = json.loads((vae / "config.json").read_text())
        (vae / "config.json").write_text(json.dumps({**config, "layers_per_block": 2}))

    def of_another_class(vae):
        config = json.loads((vae / "config.json").read_text())
        (vae / "config.json").write_text(json.dumps({**config, "_class_name": "AutoencoderTiny"}))

    error = refusal(missing)
    assert "the teacher's folder has no VAE: " in error.message and "existing latents cache" in error.hint
    assert "weights are pickled" in refusal(pickled).message
    assert "weights not found" in refusal(weightless).message
    assert "do not fit each other" in refusal(cut).message
    assert "missing keys: " in refusal(unlike_its_config).hint
    assert "cannot be used: AutoencoderTiny" in refusal(of_another_class).message


def test_images_that_a_vae_cannot_encode(teachers):
    assert latents.latent_shape(teachers("sd"), (3, 32, 16)) == (4, 16, 8)
    with pytest.raises(BadInputError, match="3 channels, these have 1"):
        latents.latent_shape(teachers("sd"), (1, 32, 32))
    with pytest.raises(BadInputError, match="multiples of 2: 33x32"):
        latents.latent_shape(teachers("sd"), (3, 33, 32))
    assert latents.image_shape(teachers("sd"), (4, 16, 8)) == (3, 32, 16)
    with pytest.raises(BadInputError, match="latents of 4 channels, its model reads 16"):
        latents.image_shape(teachers("sd"), (16, 16, 8))


def test_other_folders_are_no_caches_of_latents(tmp_path, encode):
    with pytest.raises(BadInputError, match="no latents cache"):
        LatentCache.open(tmp_path)
    encode()
    manifest = tmp_path / "latents" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"kind": "latents"', '"kind": "prompts"'))
    with pytest.raises(BadInputError, match="not a latents cache"):
        LatentCache.open(tmp_path / "latents")
