"""Teacher targets on disk: exact, bounded, refused when they are another teacher's, and never in the way."""

import errno
import json
import os
import shutil
import subprocess

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from edgediff import data, model_folder
from edgediff.artifacts import write_json
from edgediff.data.shards import Shard
from edgediff.distillation import cache
from edgediff.distillation.cache import SHARD_BYTES, TargetCache
from edgediff.distillation.targets import LiveTeacher, TaughtBatches
from edgediff.errors import BadInputError, StageFailedError
from edgediff.recipe import DataConfig
from edgediff.samples import Samples
from edgediff.training.batches import Noising

COUNT, BATCH = 24, 8
POINTS = ("down_blocks.0", "mid_block", "up_blocks.1")
IDENTITY = {"teacher": "t", "scheduler": "s"}


class CountingTeacher(LiveTeacher):
    """A live teacher that remembers how many samples it was asked for."""

    asked = 0

    def __call__(self, entries, batch):
        self.asked += len(entries)
        return super().__call__(entries, batch)


@pytest.fixture(scope="module")
def images():
    return data.load(DataConfig(name="fashion-mnist-20k"), "train", shape=(1, 28, 28))


@pytest.fixture(scope="module")
def loaded(small_teacher):
    return model_folder.load(small_teacher)


@pytest.fixture
def opened(loaded, images, tmp_path):
    """A function → (batches over a cache in `folder`, the teacher behind it)."""

    def open_cache(folder=tmp_path / "targets", features=False, said=None, **changes):
        live = CountingTeacher([loaded], [POINTS if features else ()])
        tell = (lambda text: None) if said is None else said.append
        settings = {"targets": COUNT, "seed": 3, "identity": IDENTITY, "tell": tell, **changes}
        teaching = TargetCache(live, folder, **settings)
        noising = Noising(
            Samples(images, lambda count: {}), DDPMScheduler(), DataConfig(), seed=0, device=torch.device("cpu")
        )
        return TaughtBatches(noising, teaching), live

    return open_cache


def steps(batches, count):
    return [batches(step, torch.arange(step * BATCH, (step + 1) * BATCH)) for step in range(count)]


def report(batches):
    """What is said of a training in one part, and written down."""
    found = batches.teaching.report(batches.teaching.counts())
    batches.teaching.remember_cost(found)
    return found


def same(one, other):
    return torch.equal(one.sample, other.sample) and torch.equal(one.targets.prediction, other.targets.prediction)


def test_every_target_is_computed_once(opened):
    batches, teacher = opened()
    steps(batches, 3)
    assert teacher.asked == COUNT
    steps(batches, 12)
    assert teacher.asked == COUNT
    told = report(batches)
    assert (told["computed"], told["read"]) == (COUNT, 12 * BATCH)
    assert told["teacher_seconds_saved"] == pytest.approx(told["teacher_seconds"] * 12 * BATCH / COUNT)


def test_what_a_target_costs_is_known_to_trainings_that_only_read(opened):
    cold, _ = opened()
    steps(cold, 3)
    cost = report(cold)["teacher_seconds"] / COUNT
    warm, _ = opened()
    steps(warm, 3)
    assert report(warm)["teacher_seconds_saved"] == pytest.approx(COUNT * cost)


@pytest.mark.parametrize("strange", [float("nan"), float("inf")])
def test_an_answer_that_is_not_finite_is_the_teachers_fault_and_not_kept(opened, strange, monkeypatch):
    batches, _ = opened()
    steps(batches, 1)
    intact = CountingTeacher.__call__

    def overflowing(self, entries, batch):
        said = intact(self, entries, batch)
        said.prediction[3, 0, 0, 0] = strange
        return said

    monkeypatch.setattr(CountingTeacher, "__call__", overflowing)
    with pytest.raises(StageFailedError, match="teacher's answer is not finite at step 2"):
        steps(batches, 2)
    monkeypatch.setattr(CountingTeacher, "__call__", intact)
    assert all(batch.targets.prediction.isfinite().all() for batch in steps(batches, 3))


def test_targets_are_the_teachers_in_half_precision(opened, loaded):
    batches, _ = opened()
    for batch in (*steps(batches, 3), *steps(batches, 5)):
        with torch.no_grad():
            expected = loaded.model(batch.sample, batch.timestep).sample
        # Half precision keeps 11 bits; predictions of this teacher are below 4.
        torch.testing.assert_close(batch.targets.prediction, expected, atol=2e-3, rtol=1e-3)


def test_a_training_does_not_depend_on_how_warm_its_cache_is(opened, tmp_path):
    """Cold, warm, and half warm with damaged entries: the same batches to the last bit."""
    cold = steps(opened()[0], 9)
    warm_batches, teacher = opened()
    warm = steps(warm_batches, 9)
    assert teacher.asked == 0
    assert all(same(*pair) for pair in zip(cold, warm, strict=True))

    (shard,) = (tmp_path / "targets").glob("shard-*.safetensors")
    content = bytearray(shard.read_bytes())
    content[Shard(shard).offsets["map000"] + COUNT * 28 * 28 * 2 - 1] ^= 255  # in the last entry's prediction
    shard.write_bytes(content)
    mended_batches, teacher = opened()
    mended = steps(mended_batches, 9)
    assert teacher.asked == BATCH
    assert all(same(*pair) for pair in zip(cold, mended, strict=True))


def test_features_are_kept_too(opened, loaded):
    batches, _ = opened(features=True)
    steps(batches, 3)
    batch = batches(0, torch.arange(BATCH))
    with torch.no_grad():
        _, expected = loaded.family.prediction_and_features(loaded.model, POINTS, batch.sample, batch.timestep)
    assert [tuple(map_.shape) for map_ in batch.targets.features] == [tuple(map_.shape) for map_ in expected]
    for found, wanted in zip(batch.targets.features, expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-2, rtol=1e-3)


@pytest.mark.parametrize("visited", [8, COUNT, 2 * COUNT])
def test_what_it_takes_on_disk_is_known_before(visited, opened, loaded, monkeypatch):
    monkeypatch.setattr(cache, "SHARD_BYTES", 500_000)  # six entries
    batches, _ = opened(features=True)
    steps(batches, visited // BATCH)
    shapes = [(1, 28, 28), *loaded.family.feature_shapes(loaded.model.config, POINTS)]
    # Beside the entries are their checksums and a header.
    assert report(batches)["bytes"] == pytest.approx(cache.disk_bytes(COUNT, visited, shapes), rel=0.01)


def test_a_cache_with_features_serves_predictions_but_not_the_other_way_round(opened, tmp_path):
    with_features = steps(opened(features=True)[0], 3)
    batches, teacher = opened()
    assert all(same(*pair) for pair in zip(with_features, steps(batches, 3), strict=True))
    assert teacher.asked == 0 and batches(0, torch.arange(2)).targets.features == ()
    opened(folder=tmp_path / "predictions")
    with pytest.raises(BadInputError, match=r"another features \(no → .+\): "):
        opened(folder=tmp_path / "predictions", features=True)


def test_the_first_epoch_goes_in_order_and_later_ones_in_fresh_orders_of_pairs(opened):
    batches, _ = opened()
    entries = batches.teaching.entries(torch.arange(4 * COUNT)).view(4, COUNT)
    assert entries[0].tolist() == list(range(COUNT))
    for epoch in entries[1:]:
        assert sorted(epoch.tolist()) == list(range(COUNT))
        assert epoch.tolist() != list(range(COUNT))
        assert torch.equal(epoch[1::2], epoch[0::2] + 1)  # antithetic pairs stay together
    assert entries[1].tolist() != entries[2].tolist()


def test_another_teachers_cache_is_refused_by_name(opened):
    opened()
    with pytest.raises(BadInputError, match=r"another noise schedule \(s → other\): "):
        opened(identity={**IDENTITY, "scheduler": "other"})
    with pytest.raises(BadInputError, match=r"another noise schedule \(s → y\), teacher \(t → x\): "):
        opened(identity={"teacher": "x", "scheduler": "y"})


def test_targets_without_their_manifest_are_nobodys(opened, tmp_path):
    steps(opened()[0], 1)
    (tmp_path / "targets" / "manifest.json").unlink()
    with pytest.raises(BadInputError, match="lacks its manifest"):
        opened(identity={"teacher": "x", "scheduler": "y"})


def test_a_cache_grows_and_serves_fewer(opened):
    steps(opened()[0], 3)
    batches, teacher = opened(targets=2 * COUNT)
    steps(batches, 6)
    assert teacher.asked == COUNT
    batches, teacher = opened(targets=COUNT // 2)
    steps(batches, 6)
    assert teacher.asked == 0


def test_shards_have_one_size_however_few_targets_a_cache_was_begun_with(opened, tmp_path):
    sizes = []
    for targets in (2, COUNT):
        folder = tmp_path / str(targets)
        steps(opened(folder=folder, targets=targets)[0], 1)
        sizes += [shard.stat().st_size for shard in folder.glob("shard-*.safetensors")]
    assert len(sizes) == 2 and sizes[0] == sizes[1] == pytest.approx(SHARD_BYTES, rel=0.01)


def test_a_cache_whose_shards_have_another_size_goes_on_with_it(opened, tmp_path, monkeypatch):
    monkeypatch.setattr("edgediff.distillation.cache.SHARD_BYTES", 6 * 28 * 28 * 2)
    first = steps(opened()[0], 2)
    monkeypatch.undo()
    batches, teacher = opened()
    again = steps(batches, 3)
    assert all(same(*pair) for pair in zip(first, again, strict=False)) and teacher.asked == BATCH
    assert len(list((tmp_path / "targets").glob("shard-*.safetensors"))) == COUNT // 6


def test_shards_are_plain_safetensors(opened, tmp_path):
    from safetensors.numpy import load_file

    batches, _ = opened()
    kept = steps(batches, 3)
    (shard,) = (tmp_path / "targets").glob("shard-*.safetensors")
    tensors = load_file(shard)
    assert tensors["map000"].dtype == np.float16 and tensors["map000"].shape[1:] == (1, 28, 28)
    assert np.array_equal(tensors["map000"][:BATCH], kept[0].targets.prediction.numpy().astype(np.float16))
    assert json.loads((tmp_path / "targets" / "manifest.json").read_text())["teacher"] == "t"


def test_a_damaged_shard_is_computed_again(opened, tmp_path):
    batches, _ = opened()
    first = steps(batches, 3)
    (shard,) = (tmp_path / "targets").glob("shard-*.safetensors")
    whole = shard.read_bytes()
    for damage in (whole[: len(whole) // 2], whole[:4], b"\x08" + bytes(7) + b"no json!" + whole):
        shard.write_bytes(damage)
        batches, teacher = opened()
        again = steps(batches, 3)
        assert teacher.asked == COUNT and all(same(*pair) for pair in zip(first, again, strict=True))
        assert len(shard.read_bytes()) == len(whole)


def test_a_disk_that_is_full_from_the_start_is_in_nobody_s_way(opened, tiny_disk):
    (tiny_disk / "photos").write_bytes(bytes(shutil.disk_usage(tiny_disk).free))
    said = []
    batches, teacher = opened(folder=tiny_disk / "targets", said=said)
    steps(batches, 3)
    assert teacher.asked == COUNT and len(said) == 1 and "no space left" in said[0]
    assert report(batches)["computed"] == COUNT


def read_only(disk):
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)


def test_what_may_only_be_read_is_read_and_the_rest_computed(opened, tiny_disk, monkeypatch):
    """Of three batches one is missing in a shard that is there, and one in a shard that is not."""
    monkeypatch.setattr("edgediff.distillation.cache.SHARD_BYTES", 12 * 28 * 28 * 2)
    folder, said = tiny_disk / "targets", []
    first = steps(opened(folder=folder)[0], 2)
    manifest = (folder / "manifest.json").read_text()
    read_only(tiny_disk)
    batches, teacher = opened(folder=folder, targets=2 * COUNT, said=said)
    again = steps(batches, 2)
    assert all(same(*pair) for pair in zip(first, again, strict=True)) and teacher.asked == 0 and said == []
    steps(batches, 4)
    assert teacher.asked == 2 * BATCH
    assert len(said) == 1 and "Read-only file system" in said[0]
    assert report(batches)["computed"] == 2 * BATCH
    assert (folder / "manifest.json").read_text() == manifest


def test_a_damaged_shard_that_may_only_be_read_is_computed_every_time(opened, tiny_disk, monkeypatch):
    monkeypatch.setattr("edgediff.distillation.cache.SHARD_BYTES", COUNT * 28 * 28 * 2)
    folder, said = tiny_disk / "targets", []
    steps(opened(folder=folder)[0], 3)
    (shard,) = folder.glob("shard-*.safetensors")
    shard.write_bytes(shard.read_bytes()[:100])
    read_only(tiny_disk)
    batches, teacher = opened(folder=folder, said=said)
    steps(batches, 6)
    assert teacher.asked == 2 * COUNT and len(said) == 1


def test_a_cache_that_cannot_be_begun_is_in_nobody_s_way(opened, tiny_disk):
    read_only(tiny_disk)
    said = []
    batches, teacher = opened(folder=tiny_disk / "targets", said=said)
    steps(batches, 3)
    assert teacher.asked == COUNT and len(said) == 1 and "Read-only file system" in said[0]
    assert report(batches)["computed"] == COUNT


def test_shards_of_somebody_else_are_read(opened, monkeypatch):
    first = steps(opened()[0], 2)
    opening = os.open

    def refuse(path, flags, *rest, **more):  # tests may run as root, whom permissions do not bind
        if flags & os.O_RDWR and str(path).endswith(".safetensors"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opening(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", refuse)
    said = []
    batches, teacher = opened(said=said)
    again = steps(batches, 3)
    assert all(same(*pair) for pair in zip(first, again, strict=False)) and teacher.asked == BATCH
    assert len(said) == 1 and "Permission denied" in said[0]


def test_a_full_disk_leaves_training_uncached_and_says_so(opened, tiny_disk, monkeypatch):
    monkeypatch.setattr("edgediff.distillation.cache.SHARD_BYTES", 12 * 28 * 28 * 2)  # 19 KB, so that some fit
    free = shutil.disk_usage(tiny_disk).free
    targets = 2 * free // (28 * 28 * 2)
    said = []
    batches, teacher = opened(folder=tiny_disk / "targets", targets=targets, said=said)
    count = targets // BATCH
    first = steps(batches, count)
    assert teacher.asked == count * BATCH
    assert len(said) == 1 and "no space left" in said[0]
    again = [batches(step, torch.arange(step * BATCH, (step + 1) * BATCH)) for step in range(count)]
    assert all(same(*pair) for pair in zip(first, again, strict=True))
    assert count * BATCH < teacher.asked < 2 * count * BATCH  # what fitted was read


def test_of_two_that_begin_a_cache_at_once_the_second_joins_or_is_refused(opened, tmp_path, monkeypatch):
    opened()
    manifest = tmp_path / "targets" / "manifest.json"
    before = manifest.read_text()
    unseen = iter([False])  # the first look comes too early
    exists = type(manifest).exists

    def late(path, **more):
        return next(unseen, True) if path == manifest else exists(path, **more)

    monkeypatch.setattr(type(manifest), "exists", late)
    opened()
    unseen = iter([False])
    with pytest.raises(BadInputError, match="another teacher"):
        opened(identity={"teacher": "x", "scheduler": "s"})
    monkeypatch.undo()
    assert manifest.read_text() == before


def test_a_cache_that_was_begun_anew_for_another_teacher_keeps_its_manifest(opened, tmp_path):
    batches, _ = opened()
    steps(batches, 3)
    manifest = tmp_path / "targets" / "manifest.json"
    write_json(manifest, {**json.loads(manifest.read_text()), "teacher": "x"})
    before = manifest.read_text()
    report(batches)
    assert manifest.read_text() == before
