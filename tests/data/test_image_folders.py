"""Folders of loose image files: which of them are images, which split they fall to, what identifies them."""

import hashlib
import os
import time
from pathlib import Path

import pytest
import torch

from edgediff import data
from edgediff.artifacts import sha256
from edgediff.data import image_files, user_cache
from edgediff.errors import BadInputError
from edgediff.recipe import DataConfig

SHAPE = (1, 4, 4)


def load(folder, split="train", shape=SHAPE):
    return data.load(DataConfig(name=str(folder)), split, shape=shape)


def names(images):
    return [images.encoded.where(index) for index in range(len(images))]


@pytest.fixture
def photos(tmp_path, picture):
    """Forty images of several sizes and kinds in two sub-folders; their grey level is their number."""
    for number in range(40):
        kind = ("PNG", "BMP")[number % 2]
        path = tmp_path / f"class{number % 2}" / f"{number:02}.{kind.lower()}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(picture(number, kind))
    return tmp_path


def test_files_come_in_the_order_of_their_names_in_the_models_shape(photos, levels):
    images = load(photos)
    assert images.name == f"{photos.name}/train" and images.shape == SHAPE
    batch = images.batch(torch.arange(len(images)))
    assert batch.shape == (len(images), *SHAPE) and batch.dtype == torch.float32
    numbers = levels(batch)
    assert numbers == sorted(numbers, key=lambda number: (number % 2, number))
    assert load(photos, shape=(3, 8, 6)).batch(torch.tensor([0, 1])).shape == (2, 3, 8, 6)


def test_the_splits_of_a_folder_are_disjoint_and_stable(photos, picture):
    train, test = names(load(photos)), names(load(photos, "test"))
    assert len(train) + len(test) == 40 and test and not set(train) & set(test)
    (photos / "one_more.png").write_bytes(picture(200))
    assert set(names(load(photos))) - {str(photos / "one_more.png")} == set(train)


def test_the_hash_of_a_folder_follows_names_and_contents(photos):
    first = load(photos).sha256
    path = photos / names(load(photos))[0]
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    changed = load(photos).sha256
    path.write_bytes(content)
    assert load(photos).sha256 == first != changed
    path.unlink()
    assert load(photos).sha256 not in (first, changed)


def by_hand(images):
    """The hash as it is defined, of states and caches that users have."""
    whole = hashlib.sha256()
    for name in images.encoded.names:
        content = (images.encoded.root / name).read_bytes()
        whole.update(f"{name}\0{len(content)}\0".encode() + hashlib.sha256(content).digest())
    return whole.hexdigest()


@pytest.fixture
def was_read(monkeypatch):
    """The names of the files that were read for a hash."""
    found = []
    monkeypatch.setattr(image_files, "sha256", lambda path: found.append(path.name) or sha256(path))
    return found


@pytest.fixture
def settled(monkeypatch, photos):
    """A minute after the photos were made."""
    later = time.time_ns() + 60 * 10**9
    monkeypatch.setattr(time, "time_ns", lambda: later)


def test_files_are_read_for_the_hash_once_until_one_changes(photos, settled, was_read, output):
    first = data.load(DataConfig(name=str(photos)), "train", shape=SHAPE, output=output)
    assert first.sha256 == by_hand(first) and len(was_read) == len(first)
    assert output.shown == [("hash images", len(first))]
    was_read.clear()
    assert data.load(DataConfig(name=str(photos)), "train", shape=SHAPE, output=output).sha256 == first.sha256
    assert was_read == [] and len(output.shown) == 1
    path = photos / names(first)[0]
    os.utime(path, ns=(0, 0))
    assert load(photos).sha256 == first.sha256 and len(was_read) == len(first)


def test_a_change_that_keeps_size_and_time_changes_the_hash(photos, settled):
    """Archives may give all their files one time, and pictures without compression have one size."""
    first = load(photos)
    path = photos / names(first)[0]
    before, content, status = first.sha256, path.read_bytes(), path.stat()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    changed = load(photos)
    assert changed.sha256 == by_hand(changed) != before


def test_the_hash_of_files_that_have_just_changed_is_not_trusted(photos, was_read):
    first = load(photos)
    assert first.sha256 == load(photos).sha256 and len(was_read) == 2 * len(first)


def test_the_hashes_of_two_folders_are_kept_apart(photos, settled, was_read):
    assert load(photos).sha256 == load(photos.rename(f"{photos}-moved")).sha256
    assert len(was_read) == 2 * len(set(was_read))


@pytest.mark.parametrize("text", ["", "0123", "\xff"])
def test_a_kept_hash_that_is_none_is_made_again(photos, settled, user_cache, text):
    wanted = load(photos).sha256
    (kept,) = user_cache.rglob("*-images-sha256.txt")
    kept.write_bytes(text.encode("latin1"))
    assert load(photos).sha256 == wanted == kept.read_text()


def test_a_hash_that_cannot_be_kept_is_told_of(photos, settled, tmp_path_factory, monkeypatch, output):
    file = tmp_path_factory.mktemp("home") / "file"
    file.write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    images = data.load(DataConfig(name=str(photos)), "train", shape=SHAPE, output=output)
    assert images.sha256 == by_hand(images)
    (said,) = output.said
    assert said.startswith("the hash of the images cannot be kept")


@pytest.mark.parametrize("test_name", ["test", "validation", "valid", "val"])
def test_folders_called_train_and_test_are_the_splits(tmp_path, picture, levels, test_name):
    for part, numbers in (("train", (1, 2, 3)), (test_name, (8, 9)), ("spare", (7,))):
        (tmp_path / part).mkdir()
        for number in numbers:
            (tmp_path / part / f"{number}.png").write_bytes(picture(number))
    assert levels(load(tmp_path).batch(torch.arange(3))) == [1, 2, 3]
    assert levels(load(tmp_path, "test").batch(torch.arange(2))) == [8, 9]


def test_a_test_folder_comes_before_a_validation_folder(tmp_path, picture):
    for part in ("train", "test", "validation"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "1.png").write_bytes(picture(1))
    assert names(load(tmp_path, "test")) == [str(tmp_path / "test" / "1.png")]


def test_a_folder_called_train_with_all_images_is_divided_and_no_class(tmp_path, picture):
    for name in ("cat", "dog"):
        (tmp_path / "train" / name).mkdir(parents=True)
        for number in range(20):
            (tmp_path / "train" / name / f"{number}.png").write_bytes(picture(number))
    (tmp_path / "README.md").write_text("about them")
    (tmp_path / ".cache").mkdir()
    for images in (load(tmp_path), load(tmp_path, "test")):
        labels = images.class_labels(torch.arange(len(images))).tolist()
        assert labels == [int("/dog/" in name) for name in names(images)] and set(labels) == {0, 1}
    assert len(load(tmp_path)) + len(load(tmp_path, "test")) == 40
    (tmp_path / "train" / "bird.png").write_bytes(picture(1))
    assert not load(tmp_path).has_classes


def test_a_folder_called_train_beside_others_divides_nothing(tmp_path, picture):
    """It may be a class: trains beside cars."""
    for part in ("train", "car"):
        (tmp_path / part).mkdir()
        for number in range(20):
            (tmp_path / part / f"{number}.png").write_bytes(picture(number))
    assert len(load(tmp_path)) + len(load(tmp_path, "test")) == 40


def test_split_folders_may_be_links(tmp_path, photos, picture):
    folder = tmp_path / "linked"
    folder.mkdir()
    for part in ("train", "test"):
        (folder / part).symlink_to(photos / "class0")
    assert len(load(folder)) == len(load(folder, "test")) == 20


def test_linked_folders_are_part_of_the_data_and_classes(tmp_path, photos, picture):
    """A data set put together from parts that lie elsewhere."""
    elsewhere, folder = tmp_path / "elsewhere" / "dogs", tmp_path / "linked"
    elsewhere.mkdir(parents=True)
    for number in range(100, 120):
        (elsewhere / f"{number}.png").write_bytes(picture(number))
    folder.mkdir()
    (folder / "cat").symlink_to(photos / "class0")
    (folder / "dog").mkdir()
    (folder / "dog" / "more").symlink_to(elsewhere)
    both = [load(folder), load(folder, "test")]
    assert sum(map(len, both)) == 40
    for images in both:
        labels = images.class_labels(torch.arange(len(images))).tolist()
        assert labels == [int("/dog/more/" in name) for name in names(images)] and set(labels) == {0, 1}


def test_links_in_circles_end(photos):
    def found():
        return [path for split in ("train", "test") for path in names(load(photos, split))]

    before = found()
    (photos / "class0" / "up").symlink_to(photos)
    (photos / "class1" / "same").symlink_to(photos / "class1")
    (photos / "self").symlink_to(photos / "self")
    assert found() == before
    assert load(photos).encoded.classes == {"class0": 0, "class1": 1}


def test_hidden_files_and_dead_links_are_no_images(photos):
    before = names(load(photos))
    (photos / "._00.png").write_bytes(b"what a Mac leaves beside every file")
    (photos / ".thumbnails").mkdir()
    (photos / ".thumbnails" / "00.png").write_bytes(b"")
    (photos / "dead.png").symlink_to(photos / "nowhere.png")
    assert names(load(photos)) == before


def test_too_few_images_for_a_split(tmp_path, picture):
    (tmp_path / "only.png").write_bytes(picture(1))
    found = {}
    for split in ("train", "test"):
        try:
            found[split] = len(load(tmp_path, split))
        except BadInputError as error:
            found[split] = error.message
            assert "`train` and `test`" in error.hint
    assert sorted(map(str, found.values()))[0] == "1"
    assert any("no image of the folder falls to the split" in str(value) for value in found.values())


def test_samples_that_are_no_images(photos):
    with pytest.raises(BadInputError, match="4 channels"):
        load(photos, shape=(4, 8, 8))


def test_a_folder_without_images(tmp_path):
    with pytest.raises(BadInputError, match="no images") as caught:
        load(tmp_path)
    assert ".tar" in caught.value.hint and ".parquet" in caught.value.hint


def test_tables_of_what_is_known_about_images_are_not_data(photos, picture):
    """img2dataset and image folders of the Hugging Face hub have them beside the images."""
    (photos / "00000.parquet").write_bytes(b"urls and captions")
    assert len(load(photos)) + len(load(photos, "test")) == 40


def test_classes_called_by_numbers_have_these(tmp_path, picture):
    for name in ("10", "2", "0", "1", "3", "4", "5", "6", "7", "8", "9", "11"):
        (tmp_path / name).mkdir()
        for place in range(4):
            (tmp_path / name / f"{place}.png").write_bytes(picture(1))
    images = load(tmp_path)
    assert images.encoded.classes == {str(number): number for number in range(12)}
    (tmp_path / "2").rename(tmp_path / "two")
    assert list(load(tmp_path).encoded.classes)[:4] == ["0", "1", "10", "11"]
    (tmp_path / "two").rename(tmp_path / "01")
    assert list(load(tmp_path).encoded.classes)[:4] == ["0", "01", "1", "3"]


def test_a_user_without_a_home_is_told_where_caches_may_be_kept(monkeypatch):
    def nowhere():
        raise RuntimeError("Could not determine home directory.")  # as `Path.home` says

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    with pytest.raises(BadInputError, match="no home folder"):
        user_cache.made("0" * 64, "what")
