"""Where images come from: idx files, image folders, and the order in which training visits them."""

import gzip

import numpy as np
import pytest
import torch
from PIL import Image

from edgediff import data
from edgediff.data import fashion_mnist
from edgediff.data.fashion_mnist import packaged_folder, read_idx
from edgediff.data.order import batch_indices, step_generator
from edgediff.errors import BadInputError, CorruptArtifactError
from edgediff.recipe import DataConfig

PACKAGED = DataConfig(folder=str(packaged_folder()))
SHAPE = (1, 28, 28)


def test_the_packaged_subset():
    test, train = data.load(PACKAGED, "test", shape=SHAPE), data.load(PACKAGED, "train", shape=SHAPE)
    assert (len(test), len(train)) == (10_000, 20_000)
    batch = train.batch(torch.tensor([0, 19_999]))
    assert batch.shape == (2, *SHAPE) and batch.dtype == torch.float32
    assert batch.min() == -1 and 0.9 < batch.max() <= 1
    assert np.bincount(test.labels).tolist() == [1000] * 10
    assert np.bincount(train.labels).min() > 1900


def test_the_packaged_subset_is_the_start_of_the_full_set():
    if not fashion_mnist.SYSTEM_FOLDER.is_dir():
        pytest.skip("the full Fashion-MNIST is not installed")
    full = DataConfig(folder=str(fashion_mnist.SYSTEM_FOLDER))
    indices = torch.arange(0, 20_000, 997)
    for split in ("train", "test"):
        ours, theirs = (data.load(config, split, shape=SHAPE) for config in (PACKAGED, full))
        inside = indices[indices < len(ours)]
        assert torch.equal(ours.batch(inside), theirs.batch(inside))


def test_the_subset_has_a_name_of_its_own():
    assert len(data.load(DataConfig(name="fashion-mnist-20k"), "train", shape=SHAPE)) == 20_000


def test_without_a_folder_some_source_is_found():
    assert len(data.load(DataConfig(), "test", shape=SHAPE)) == 10_000


def test_a_folder_without_the_files(tmp_path):
    with pytest.raises(BadInputError, match="train-images-idx3-ubyte"):
        data.load(DataConfig(folder=str(tmp_path)), "train", shape=SHAPE)


def test_another_shape_than_the_models():
    with pytest.raises(BadInputError, match="1x28x28, samples of the model are 3x32x32"):
        data.load(PACKAGED, "test", shape=(3, 32, 32))


def test_an_unknown_name_comes_with_the_nearest():
    with pytest.raises(BadInputError) as caught:
        data.load(DataConfig(name="fashion-mnits"), "test", shape=SHAPE)
    assert "did you mean: fashion-mnist" in caught.value.hint


def idx(values):
    header = bytes((0, 0, 8, values.ndim)) + b"".join(size.to_bytes(4, "big") for size in values.shape)
    return header + values.astype(np.uint8).tobytes()


def test_idx_files_plain_and_gzipped(tmp_path):
    values = np.arange(24).reshape(2, 3, 4)
    (tmp_path / "plain").write_bytes(idx(values))
    (tmp_path / "packed.gz").write_bytes(gzip.compress(idx(values)))
    for name in ("plain", "packed.gz"):
        assert np.array_equal(read_idx(tmp_path / name, 3), values)


@pytest.mark.parametrize("cut", [5, 20, 39])
def test_a_truncated_idx_file_is_named(tmp_path, cut):
    path = tmp_path / "plain"
    path.write_bytes(idx(np.arange(24).reshape(2, 3, 4))[:cut])
    with pytest.raises(CorruptArtifactError, match="plain"):
        read_idx(path, 3)


def test_a_truncated_gzip_file_is_named(tmp_path):
    path = tmp_path / "packed.gz"
    path.write_bytes(gzip.compress(idx(np.arange(24).reshape(2, 3, 4)))[:-9])
    with pytest.raises(CorruptArtifactError, match=r"packed\.gz"):
        read_idx(path, 3)


@pytest.fixture
def photos(tmp_path):
    """Forty images of several sizes and kinds, the left half black and the right half white."""
    for index in range(40):
        pixels = np.zeros((20 + index % 3, 30, 3), dtype=np.uint8)
        pixels[:, 15:] = 255
        folder = tmp_path / f"class{index % 2}"
        folder.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{index:02}.{('png', 'bmp')[index % 2]}")
    return tmp_path


def test_an_image_folder_is_cropped_resized_and_scaled(photos):
    images = data.load(DataConfig(name=str(photos)), "train", shape=(3, 8, 8))
    batch = images.batch(torch.tensor([0, 1]))
    assert batch.shape == (2, 3, 8, 8)
    assert batch[..., :3].max() < -0.9 and batch[..., 5:].min() > 0.9
    assert data.load(DataConfig(name=str(photos)), "train", shape=(1, 8, 8)).batch(torch.tensor([0])).shape[1] == 1


def test_the_splits_of_a_folder_are_disjoint_and_stable(photos):
    config = DataConfig(name=str(photos))
    train, test = (data.load(config, split, shape=(1, 8, 8)) for split in ("train", "test"))
    assert len(train) + len(test) == 40 and len(test) > 0
    assert not set(train.paths) & set(test.paths)
    Image.new("L", (9, 9)).save(photos / "one_more.png")
    grown = data.load(config, "train", shape=(1, 8, 8))
    assert set(train.paths) <= set(grown.paths) | {photos / "one_more.png"}
    assert grown.sha256 != train.sha256 or len(grown) == len(train)


def test_train_and_test_folders_are_the_splits(tmp_path):
    for split, count in (("train", 3), ("test", 2)):
        (tmp_path / split).mkdir()
        for index in range(count):
            Image.new("L", (4, 4)).save(tmp_path / split / f"{index}.png")
    config = DataConfig(name=str(tmp_path))
    assert [len(data.load(config, split, shape=(1, 4, 4))) for split in ("train", "test")] == [3, 2]


def test_a_damaged_image_is_named(photos):
    images = data.load(DataConfig(name=str(photos)), "train", shape=(1, 8, 8))
    images.paths[3].write_bytes(images.paths[3].read_bytes()[:40])
    with pytest.raises(CorruptArtifactError, match=images.paths[3].name):
        images.batch(torch.tensor([3]))


def test_a_folder_without_images(tmp_path):
    with pytest.raises(BadInputError, match="no images"):
        data.load(DataConfig(name=str(tmp_path)), "train", shape=(1, 8, 8))


def test_every_epoch_is_a_permutation_whatever_the_batch_size():
    steps = [batch_indices(step, num_images=10, batch_size=4, seed=3) for step in range(5)]
    visited = torch.cat(steps)
    first, second = visited[:10], visited[10:]
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(10))
    assert first.tolist() != second.tolist()
    of_other_seed = torch.cat([batch_indices(step, num_images=10, batch_size=4, seed=4) for step in range(5)])
    assert not torch.equal(visited, of_other_seed)


def test_a_batch_larger_than_the_set_wraps_around():
    indices = batch_indices(0, num_images=3, batch_size=8, seed=0)
    assert torch.bincount(indices, minlength=3).tolist() in ([3, 3, 2], [3, 2, 3], [2, 3, 3])


def test_the_generators_of_steps_differ_and_repeat():
    def draw(seed, step):
        return tuple(torch.randn(3, generator=step_generator(seed, step)).tolist())

    assert len({draw(seed, step) for seed in (0, 1) for step in (0, 1, 2)}) == 6
    assert draw(5, 9) == draw(5, 9)
