"""Where images come from: idx files, image folders, and the order in which training visits them."""

import gzip

import numpy as np
import pytest
import torch
from PIL import Image

from edgediff import data
from edgediff.artifacts import sha256
from edgediff.data import fashion_mnist, image_folder
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


def test_the_readme_of_the_subset_has_its_hashes():
    rows = [line.split("|")[1:3] for line in (packaged_folder() / "README.md").read_text().splitlines()]
    written = {name.strip(): digest.strip() for name, digest in (row for row in rows if len(row) == 2)}
    for path in packaged_folder().glob("*.gz"):
        assert written[path.name] == sha256(path)


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


def test_a_damaged_gzip_file_is_named(tmp_path):
    whole = gzip.compress(idx(np.arange(24).reshape(2, 3, 4)))
    for position in (0, 10, -6):  # the magic number, the first block of the stream, the checksum
        packed = bytearray(whole)
        packed[position] ^= 0b110
        (tmp_path / "packed.gz").write_bytes(packed)
        with pytest.raises(CorruptArtifactError, match=r"packed\.gz"):
            read_idx(tmp_path / "packed.gz", 3)


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
    assert set(grown.paths) - {photos / "one_more.png"} == set(train.paths)


def test_the_hash_of_a_folder_follows_names_and_contents(photos):
    def content():
        return data.load(DataConfig(name=str(photos)), "train", shape=(1, 8, 8)).sha256

    first = content()
    path = data.load(DataConfig(name=str(photos)), "train", shape=(3, 8, 8)).paths[0]
    pixels = path.read_bytes()
    path.write_bytes(pixels + b"\0")
    changed = content()
    path.write_bytes(pixels)
    assert content() == first != changed
    path.unlink()
    assert content() not in (first, changed)


def test_images_are_seen_as_a_viewer_shows_them(tmp_path):
    """Turned upright by the camera's note, cropped around the centre, antialiased, grey by luma."""
    striped = np.zeros((40, 80), dtype=np.uint8)
    striped[:, ::2] = 255  # finer than the target: antialiasing gives grey, skipping pixels gives black or white
    Image.fromarray(striped).save(tmp_path / "a.png")
    top_white = np.zeros((20, 20), dtype=np.uint8)
    top_white[:10] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by a quarter clockwise: the top goes to the right
    Image.fromarray(top_white).save(tmp_path / "b.jpg", exif=exif, quality=95)
    framed = np.full((10, 30, 3), (255, 0, 0), dtype=np.uint8)
    framed[:, 10:20] = (0, 255, 0)
    Image.fromarray(framed).save(tmp_path / "c.png")
    load = image_folder.ImageFolder("photos", tmp_path, tuple(sorted(tmp_path.iterdir())), (1, 10, 10)).batch
    stripes, turned, green = load(torch.arange(3))[:, 0]
    assert stripes[:, 1:-1].abs().max() < 0.15
    assert turned[:, :4].max() < -0.8 and turned[:, 6:].min() > 0.8
    torch.testing.assert_close(green, torch.full((10, 10), 0.587 * 2 - 1), atol=0.01, rtol=0)


def test_more_than_8_bits_are_refused_rather_than_clipped_to_white(tmp_path):
    Image.fromarray(np.full((8, 8), 30_000, dtype=np.uint16)).save(tmp_path / "deep.png")
    images = image_folder.ImageFolder("deep", tmp_path, (tmp_path / "deep.png",), (1, 8, 8))
    with pytest.raises(BadInputError, match=r"8 bits a channel: .*deep\.png"):
        images.batch(torch.tensor([0]))


def test_too_few_images_for_a_split(tmp_path):
    Image.new("L", (9, 9)).save(tmp_path / "only.png")
    splits = {}
    for split in ("train", "test"):
        try:
            splits[split] = len(data.load(DataConfig(name=str(tmp_path)), split, shape=(1, 8, 8)))
        except BadInputError as error:
            splits[split] = error.message
            assert "`train` and `test`" in error.hint
    assert sorted(map(str, splits.values()))[0] == "1"
    assert any("none of 1 images" in str(value) for value in splits.values())


def test_samples_that_are_no_images(photos):
    with pytest.raises(BadInputError, match="4 channels"):
        data.load(DataConfig(name=str(photos)), "train", shape=(4, 8, 8))


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
