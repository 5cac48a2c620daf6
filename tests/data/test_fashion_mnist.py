"""The known data set: its packaged subset, its idx files, and its names."""

import gzip

import numpy as np
import pytest
import torch

from edgediff import data
from edgediff.artifacts import sha256
from edgediff.data import fashion_mnist
from edgediff.data.fashion_mnist import packaged_folder, read_idx
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


def test_the_readme_of_the_subset_has_its_hashes():
    rows = [line.split("|")[1:3] for line in (packaged_folder() / "README.md").read_text().splitlines()]
    written = {name.strip(): digest.strip() for name, digest in (row for row in rows if len(row) == 2)}
    for path in packaged_folder().glob("*.gz"):
        assert written[path.name] == sha256(path)


def test_without_a_folder_some_source_is_found():
    assert len(data.load(DataConfig(), "test", shape=SHAPE)) == 10_000


def test_models_of_32_pixels_see_the_images_in_a_black_frame():
    plain, framed = (data.load(PACKAGED, "test", shape=(1, side, side)) for side in (28, 32))
    indices = torch.arange(50)
    images = framed.batch(indices)
    assert torch.equal(images[:, :, 2:-2, 2:-2], plain.batch(indices))
    frame = torch.ones(32, 32, dtype=torch.bool)
    frame[2:-2, 2:-2] = False
    assert (images[:, 0, frame] == -1).all() and framed.sha256 != plain.sha256
    assert torch.equal(framed.class_labels(indices), plain.class_labels(indices))


def test_captions_name_the_class_in_words():
    images = data.load(PACKAGED, "test", shape=SHAPE)
    found = dict(zip(images.class_labels(torch.arange(100)).tolist(), images.captions(torch.arange(100)), strict=True))
    assert found[7] == "a photo of a sneaker" and found[9] == "a photo of an ankle boot" and len(found) == 10


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


def test_a_damaged_gzip_file_is_named(tmp_path):
    whole = gzip.compress(idx(np.arange(24).reshape(2, 3, 4)))
    for position in (0, 10, -6):  # the magic number, the first block of the stream, the checksum
        packed = bytearray(whole)
        packed[position] ^= 0b110
        (tmp_path / "packed.gz").write_bytes(packed)
        with pytest.raises(CorruptArtifactError, match=r"packed\.gz"):
            read_idx(tmp_path / "packed.gz", 3)
