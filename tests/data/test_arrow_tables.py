"""Data sets of Hugging Face `datasets` on disk, and tables in Arrow and Parquet files: read by row, resumed exactly."""

import json
import shutil
import socket

import pytest
import torch

from edgediff import data
from edgediff.data.order import visited
from edgediff.errors import BadInputError, CorruptArtifactError, MissingExtraError
from edgediff.recipe import DataConfig

datasets = pytest.importorskip("datasets")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

SHAPE = (1, 4, 4)
ENCODED = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.fixture(autouse=True)
def quiet():
    datasets.disable_progress_bars()


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("a local folder asks nobody")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def load(folder, split="train", output=None, shape=SHAPE):
    return data.load(DataConfig(name=str(folder)), split, shape=shape, output=output)


@pytest.fixture
def all_levels(levels):
    return lambda images: levels(images.batch(torch.arange(len(images))))


@pytest.fixture
def dataset(picture):
    """A function → a data set of `datasets` whose images are of these grey levels."""

    def of(numbers, columns=("image",)):
        rows = {name: [{"bytes": picture(number), "path": None} for number in numbers] for name in columns}
        features = {name: datasets.Image() for name in columns} | {"label": datasets.Value("int64")}
        return datasets.Dataset.from_dict({**rows, "label": list(numbers)}, features=datasets.Features(features))

    return of


def table(pictures, paths=None):
    """A table without the notes of `datasets`."""
    rows = [{"bytes": encoded, "path": path} for encoded, path in zip(pictures, paths or pictures, strict=True)]
    if paths is None:
        rows = [row | {"path": None} for row in rows]
    return pa.table({"jpg": pa.array(rows, ENCODED), "label": list(range(len(rows)))})


def test_a_saved_data_set_is_divided_by_row(tmp_path, dataset, all_levels):
    dataset(range(100)).save_to_disk(tmp_path / "beans", num_shards=3)
    train, test = load(tmp_path / "beans"), load(tmp_path / "beans", "test")
    assert sorted(all_levels(train) + all_levels(test)) == list(range(100))
    assert 5 <= len(test) <= 15
    assert train.name == "beans/train" and train.sha256 != test.sha256
    dataset(range(120)).save_to_disk(tmp_path / "grown")
    assert [number for number in all_levels(load(tmp_path / "grown", "test")) if number < 100] == all_levels(test)


def test_rows_that_go_round_ten_classes_are_not_divided_by_class(tmp_path, dataset):
    dataset(range(200)).save_to_disk(tmp_path / "digits")
    images = load(tmp_path / "digits", "test")
    classes = {int(images.encoded.where(index).split()[-1]) % 10 for index in range(len(images))}
    assert len(classes) > 5


@pytest.mark.parametrize("test_name", ["test", "validation", "val"])
def test_splits_of_a_saved_data_set(tmp_path, dataset, all_levels, test_name):
    parts = {"train": dataset(range(5)), test_name: dataset([9, 8]), "unsupervised": dataset([7])}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "beans")
    assert all_levels(load(tmp_path / "beans")) == [0, 1, 2, 3, 4]
    assert all_levels(load(tmp_path / "beans", "test")) == [9, 8]


@pytest.mark.parametrize("others", [{}, {"unsupervised": range(100, 120)}])
def test_a_train_split_without_a_test_split_is_divided(tmp_path, dataset, all_levels, others):
    parts = {"train": dataset(range(40)), **{name: dataset(numbers) for name, numbers in others.items()}}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "beans")
    both = all_levels(load(tmp_path / "beans")) + all_levels(load(tmp_path / "beans", "test"))
    assert sorted(both) == list(range(40))


def test_splits_of_other_names_are_named(tmp_path, dataset):
    parts = {"trian": dataset(range(4)), "holdout": dataset(range(4))}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "beans")
    with pytest.raises(BadInputError, match="no split `train`") as caught:
        load(tmp_path / "beans")
    assert "did you mean: trian" in caught.value.hint


def test_a_selection_is_saved_as_such(tmp_path, dataset, all_levels):
    dataset(range(50)).select([30, 10, 20]).save_to_disk(tmp_path / "train")
    dataset([5]).save_to_disk(tmp_path / "test")
    assert all_levels(load(tmp_path)) == [30, 10, 20]


def test_files_of_an_older_or_derived_data_set_are_left_out(tmp_path, dataset, all_levels):
    dataset(range(40)).save_to_disk(tmp_path / "train", num_shards=4)
    old = (tmp_path / "train" / "data-00003-of-00004.arrow").read_bytes()
    shutil.rmtree(tmp_path / "train")
    dataset([1, 2]).save_to_disk(tmp_path / "train")
    (tmp_path / "train" / "data-00003-of-00004.arrow").write_bytes(old)
    (tmp_path / "test").mkdir()
    source = table([b""])
    for name in ("beans-test.arrow", "cache-0123.arrow"):
        with pa.ipc.new_stream(str(tmp_path / "test" / name), source.schema) as stream:
            stream.write_table(source)
    assert all_levels(load(tmp_path)) == [1, 2]
    assert len(load(tmp_path, "test")) == 1


def test_a_saved_data_set_that_was_not_copied_whole(tmp_path, dataset):
    dataset(range(40)).save_to_disk(tmp_path / "beans", num_shards=4)
    (tmp_path / "beans" / "data-00002-of-00004.arrow").unlink()
    with pytest.raises(CorruptArtifactError, match=r"lacks a file: .*data-00002-of-00004\.arrow"):
        load(tmp_path / "beans")


def test_resuming_reads_what_an_uninterrupted_training_reads(tmp_path, dataset):
    def batch(images, step):
        return images.batch(visited(torch.arange(step * 16, step * 16 + 16), count=len(images), seed=5))

    dataset(range(60)).save_to_disk(tmp_path / "beans", num_shards=2)
    images = load(tmp_path / "beans")
    whole = [batch(images, step) for step in range(8)]
    resumed = load(tmp_path / "beans")
    assert all(torch.equal(batch(resumed, step), whole[step]) for step in range(5, 8))


def test_images_of_other_kinds_in_a_data_set(tmp_path):
    from PIL import Image

    images = [
        Image.new("RGBA", (9, 20), (0, 0, 0, 0)),
        Image.new("LA", (20, 9), (40, 255)),
        Image.new("RGB", (300, 200), (10, 20, 30)).quantize(2),
        Image.new("L", (1, 1), 70),
    ]
    features = datasets.Features({"picture": datasets.Image()})
    datasets.Dataset.from_dict({"picture": images}, features=features).save_to_disk(tmp_path / "train")
    datasets.Dataset.from_dict({"picture": images[:1]}, features=features).save_to_disk(tmp_path / "test")
    batch = (load(tmp_path, shape=(3, 4, 4)).batch(torch.arange(4)) + 1) * 127.5
    assert batch[:, :, 2, 2].round().int().tolist() == [[255] * 3, [40] * 3, [10, 20, 30], [70] * 3]


def test_parquet_files_of_the_hub(tmp_path, dataset, all_levels, output, user_cache):
    """The names that `push_to_hub` gives them say the split."""
    (tmp_path / "data").mkdir()
    for name, numbers in {"train-00000-of-00002": range(150), "train-00001-of-00002": range(150, 155)}.items():
        dataset(numbers).to_parquet(tmp_path / "data" / f"{name}.parquet")
    dataset([9, 8]).to_parquet(tmp_path / "data" / "validation-00000-of-00001.parquet")
    assert all_levels(load(tmp_path, output=output)) == list(range(155))
    assert all_levels(load(tmp_path, "test", output=output)) == [9, 8]
    expected = [("copy images out of Parquet", 2), ("copy images out of Parquet", 1)]
    assert output.shown == expected
    assert all_levels(load(tmp_path, output=output)) == list(range(155))
    assert output.shown == expected  # once is enough
    kept = list(user_cache.rglob("*.arrow"))
    assert len(kept) == 3
    assert all(pa.ipc.open_stream(path.read_bytes()).schema.names == ["image"] for path in kept)  # nothing else
    assert len(list(tmp_path.rglob("*.*"))) == 3  # nothing beside the user's files


def test_splits_may_be_called_by_their_folders(tmp_path, dataset, all_levels, output, user_cache):
    """As the Hub converts data sets."""
    for name, numbers in {"default/train/0000": range(12), "default/test/0000": range(20, 23)}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        dataset(numbers).to_parquet(tmp_path / f"{name}.parquet")
    assert all_levels(load(tmp_path, output=output)) == list(range(12))
    assert all_levels(load(tmp_path, "test", output=output)) == [20, 21, 22]


def test_tables_of_images_beside_loose_images_are_refused(tmp_path, dataset, picture, output):
    dataset(range(3)).to_parquet(tmp_path / "train.parquet")
    (tmp_path / "preview.png").write_bytes(picture(1))
    with pytest.raises(BadInputError, match=r"tables of images and loose images, such as `train\.parquet` and `pre"):
        load(tmp_path, output=output)
    pq.write_table(pa.table({"file_name": ["preview.png"], "text": ["a picture"]}), tmp_path / "train.parquet")
    for number in range(40):
        (tmp_path / f"{number}.png").write_bytes(picture(number))
    assert len(load(tmp_path, output=output)) + len(load(tmp_path, "test", output=output)) == 41


def test_columns_of_lists_are_no_images(tmp_path, picture, all_levels, output, user_cache):
    """Older versions of `datasets` note a list's feature in a list."""
    both = table([picture(level) for level in range(30)]).append_column("captions", pa.array([["a", "b"]] * 30))
    noted = {"info": {"features": {"image": {"_type": "Image"}, "captions": [{"dtype": "string", "_type": "Value"}]}}}
    pq.write_table(both.replace_schema_metadata({"huggingface": json.dumps(noted)}), tmp_path / "a.parquet")
    assert len(load(tmp_path, output=output)) + len(load(tmp_path, "test", output=output)) == 30


def test_a_changed_parquet_file_is_copied_again(tmp_path, picture, all_levels, output):
    pq.write_table(table([picture(level) for level in range(30)]), tmp_path / "a.parquet")
    first = load(tmp_path, output=output)
    assert set(all_levels(first)) <= set(range(30))
    digest = first.sha256
    pq.write_table(table([picture(level) for level in range(100, 140)]), tmp_path / "a.parquet")
    second = load(tmp_path, output=output)
    assert set(all_levels(second)) <= set(range(100, 140))
    assert len(output.shown) == 2 and second.sha256 != digest


@pytest.mark.parametrize("writer", [pa.ipc.new_stream, pa.ipc.new_file])
def test_arrow_files_of_both_formats(tmp_path, picture, all_levels, writer):
    source = table([picture(level) for level in range(250)])
    for name, part in (("train-1", source.slice(0, 120)), ("train-2", source.slice(120, 100)), ("test", source[220:])):
        with writer(str(tmp_path / f"{name}.arrow"), source.schema) as stream:
            stream.write_table(part, max_chunksize=50)
    assert all_levels(load(tmp_path)) == list(range(220))
    assert all_levels(load(tmp_path, "test")) == list(range(220, 250))


def test_rows_that_name_a_file(tmp_path, picture, all_levels):
    """Either in the table's folder or by its whole path."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "5.img").write_bytes(picture(5))
    (tmp_path / "elsewhere" / "6.img").write_bytes(picture(6))
    paths = ["elsewhere/5.img", str(tmp_path / "elsewhere" / "6.img"), "7.png"]
    rows = table([None, None, picture(7)], paths)
    pq.write_table(rows, tmp_path / "train.parquet")
    pq.write_table(rows, tmp_path / "test.parquet")
    assert all_levels(load(tmp_path)) == [5, 6, 7]
    (tmp_path / "elsewhere" / "5.img").unlink()
    with pytest.raises(CorruptArtifactError, match=r"cannot be read: .*row 0"):
        all_levels(load(tmp_path))


def test_nulls_and_damaged_images_are_stood_in_for(tmp_path, picture, all_levels, output):
    rows = [{"bytes": picture(3), "path": None}, None, {"bytes": None, "path": None}, {"bytes": b"x", "path": "a.jpg"}]
    source = pa.table({"image": pa.array([*rows, {"bytes": picture(4), "path": None}], ENCODED)})
    pq.write_table(source, tmp_path / "train.parquet")
    pq.write_table(source, tmp_path / "test.parquet")
    assert all_levels(load(tmp_path, output=output)) == [3, 4, 4, 4, 4]
    assert sorted(said.split("`")[1] for said in output.said) == [f"{tmp_path}: row {row}" for row in (1, 2, 3)]


def test_two_image_columns_are_named(tmp_path, dataset):
    dataset(range(3), columns=("photo", "mask")).save_to_disk(tmp_path / "beans")
    with pytest.raises(BadInputError, match=r"several columns of images \(`photo`, `mask`\)") as caught:
        load(tmp_path / "beans")
    assert "select_columns" in caught.value.hint


def test_no_image_column(tmp_path):
    pq.write_table(pa.table({"url": ["a"], "raw": [b"b"]}), tmp_path / "a.parquet")
    with pytest.raises(BadInputError, match=r"no column of images \(columns: `url`, `raw`\)") as caught:
        load(tmp_path)
    assert "datasets.Image" in caught.value.hint


def test_sounds_look_like_images_but_are_noted_as_sounds(tmp_path, picture, all_levels):
    """`datasets` stores both as bytes and a path; its note in the schema tells them apart."""
    rows = table([picture(level) for level in range(3)])
    both = rows.append_column("sound", pa.array([{"bytes": b"wave", "path": None}] * 3, ENCODED))
    noted = {"info": {"features": {"jpg": {"_type": "Image"}, "sound": {"_type": "Audio"}}}}
    for name in ("train", "test"):
        pq.write_table(both.replace_schema_metadata({"huggingface": json.dumps(noted)}), tmp_path / f"{name}.parquet")
    assert all_levels(load(tmp_path)) == [0, 1, 2]


def test_the_digest_follows_rows_and_names(tmp_path, dataset):
    def digest(numbers, name="train"):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        dataset(numbers).to_parquet(folder / f"{name}.parquet")
        dataset([1]).to_parquet(folder / "test.parquet")
        return load(folder).sha256

    assert digest(range(5)) == digest(range(5))
    assert len({digest(range(5)), digest(range(4)), digest([0, 1, 2, 4, 3]), digest(range(5), "a-train")}) == 4


@pytest.mark.parametrize("name", ["train/data-00000-of-00001.arrow", "train/a.parquet", "train/b.arrow"])
@pytest.mark.parametrize("cut", [0, 5, 100, -200])
def test_a_damaged_file_is_named(tmp_path, dataset, name, cut):
    path = tmp_path / name
    if name.endswith("of-00001.arrow"):
        dataset(range(30)).save_to_disk(tmp_path / "train")
    elif name.endswith(".parquet"):
        path.parent.mkdir()
        dataset(range(30)).to_parquet(path)
    else:
        path.parent.mkdir()
        source = table([b"0123456789" * 100] * 30)
        with pa.ipc.new_file(str(path), source.schema) as stream:
            stream.write_table(source)
    path.write_bytes(path.read_bytes()[:cut])
    shutil.copytree(tmp_path / "train", tmp_path / "test")
    with pytest.raises(CorruptArtifactError, match=f"cannot be read: .*{path.name}"):
        load(tmp_path)


def test_a_copy_without_room_is_refused_before_it_starts(tmp_path, dataset, monkeypatch):
    dataset(range(30)).to_parquet(tmp_path / "a.parquet")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10))
    with pytest.raises(BadInputError, match="no room") as caught:
        load(tmp_path)
    assert "XDG_CACHE_HOME" in caught.value.hint and "save_to_disk" in caught.value.hint


def test_without_pyarrow_the_extra_is_named(tmp_path, dataset, monkeypatch):
    dataset(range(30)).save_to_disk(tmp_path / "beans")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(MissingExtraError) as caught:
        load(tmp_path / "beans")
    assert "edgediff[data]" in caught.value.hint
