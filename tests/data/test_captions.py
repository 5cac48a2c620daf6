"""Captions and class labels, wherever a data set has them; what is missing or ambiguous is named."""

import io
import json
import tarfile

import numpy as np
import pytest
import torch

from edgediff import data
from edgediff.data import fashion_mnist
from edgediff.data.conditioned import ClassLabels, Conditioned
from edgediff.data.images import ImageArray
from edgediff.errors import BadInputError, CorruptArtifactError
from edgediff.recipe import DataConfig

SHAPE = (1, 4, 4)


def load(folder, split="train"):
    return data.load(DataConfig(name=str(folder)), split, shape=SHAPE)


def all_captions(images):
    return images.captions(torch.arange(len(images)))


def all_labels(images):
    return images.class_labels(torch.arange(len(images))).tolist()


@pytest.fixture
def pictures(tmp_path, picture):
    """A function (names relative to the folder) → a folder of pictures, whose grey levels count from 0."""

    def made(*names):
        for level, name in enumerate(names):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(picture(level))
        return tmp_path

    return made


@pytest.fixture
def divided(pictures):
    """Three training images and one test image."""
    return pictures("train/1.png", "train/2.png", "train/3.png", "test/9.png")


def json_lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def named(column, **captions):
    return [{"file_name": f"{name.lstrip('_')}.png", column: caption} for name, caption in captions.items()]


@pytest.mark.parametrize("column", ["text", "caption"])
def test_json_lines(divided, column):
    json_lines(divided / "train" / "metadata.jsonl", *named(column, _3="c", _1="a", _2="b"))
    json_lines(divided / "test" / "metadata.jsonl", *named(column, _9="z"))
    images = load(divided)
    assert all_captions(images) == ["a", "b", "c"]
    assert images.captions(torch.tensor([2, 0, 2])) == ["c", "a", "c"] and not images.has_classes
    assert all_captions(load(divided, "test")) == ["z"]


@pytest.mark.parametrize("column", ["text", "caption"])
def test_csv_as_spreadsheets_write_it(divided, column):
    text = f'\ufefffile_name,{column},width\r\n1.png,"a dog, running",5\r\n2.png,"says ""hi""",6\r\n3.png,ö,7\r\n'
    (divided / "train" / "metadata.csv").write_text(text, newline="", encoding="utf-8")
    assert all_captions(load(divided)) == ["a dog, running", 'says "hi"', "ö"]


def test_one_table_above_both_splits(divided):
    json_lines(
        divided / "metadata.jsonl",
        {"file_name": "train/1.png", "text": "a"},
        {"file_name": "./train/2.png", "text": "b"},
        {"file_name": "train/3.png", "text": "c"},
        {"file_name": "test/9.png", "text": "z"},
    )
    assert all_captions(load(divided)) == ["a", "b", "c"] and all_captions(load(divided, "test")) == ["z"]


def test_tables_in_sub_folders(pictures):
    folder = pictures("train/cats/1.png", "train/dogs/deep/1.png", "test/1.png")
    json_lines(folder / "train" / "cats" / "metadata.jsonl", {"file_name": "1.png", "text": "a cat"})
    (folder / "train" / "dogs" / "metadata.csv").write_text("file_name,text\ndeep/1.png,a dog\n")
    assert all_captions(load(folder)) == ["a cat", "a dog"]


def test_a_text_file_beside_every_image(divided):
    for name, caption in (("1", "a\n"), ("2", "  two\nlines \n"), ("3", "")):
        (divided / "train" / f"{name}.txt").write_text(caption)
    assert all_captions(load(divided)) == ["a", "two\nlines", ""]


def test_tables_come_before_text_files(divided):
    for name in "123":
        (divided / "train" / f"{name}.txt").write_text("of the file")
    json_lines(divided / "train" / "metadata.jsonl", *named("text", _1="a", _2="b", _3="c"))
    assert all_captions(load(divided)) == ["a", "b", "c"]


def test_images_of_a_folder_that_is_divided_by_name_keep_their_captions(pictures):
    folder = pictures(*(f"{number:02}.png" for number in range(30)))
    json_lines(folder / "metadata.jsonl", *({"file_name": f"{n:02}.png", "text": f"{n:02}"} for n in range(30)))
    for split in ("train", "test"):
        images = load(folder, split)
        numbers = [images.encoded.where(index)[-6:-4] for index in range(len(images))]
        assert all_captions(images) == numbers


def test_captions_that_are_missing_are_counted_and_one_is_named(divided):
    json_lines(divided / "train" / "metadata.jsonl", *named("text", _1="a", _3=None))
    with pytest.raises(BadInputError, match=r"captions are missing for 2 of 3 images, such as `.*2\.png`") as caught:
        all_captions(load(divided))
    assert "metadata.csv" in caught.value.hint
    assert load(divided).captions(torch.tensor([0])) == ["a"]


def test_no_captions_at_all(divided):
    with pytest.raises(BadInputError, match="captions are missing for 3 of 3 images"):
        all_captions(load(divided))


def test_two_tables_in_one_folder(divided):
    json_lines(divided / "train" / "metadata.jsonl", *named("text", _1="a"))
    (divided / "train" / "metadata.csv").write_text("file_name,text\n1.png,b\n")
    with pytest.raises(BadInputError, match=r"two tables of the same images: `.*metadata\.jsonl`, `.*metadata\.csv`"):
        all_captions(load(divided))


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (("file_name", "text", "caption"), "two columns of captions, `text` and `caption`: "),
        (("image", "text"), r"no column `file_name`: `.*metadata.*` \(columns: image, text\)"),
        (("file_name", "alt"), r"no column `text`: `.*metadata.*` \(columns: file_name, alt\)"),
        ((), r"no column `text`: `.*metadata.*` \(columns: none\)"),
    ],
)
def test_tables_of_other_columns(divided, name, columns, message):
    path = divided / "train" / name
    if name.endswith("csv"):
        path.write_text("\n".join([",".join(columns), ",".join("x" for _ in columns)]))
    else:
        json_lines(path, *([dict.fromkeys(columns, "x")] if columns else []))
    with pytest.raises(BadInputError, match=message) as caught:
        all_captions(load(divided))
    assert caught.value.hint


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metadata.csv", b"file_name,text\n1.png,a dog, running\n", r"more fields than columns: .*line 2"),
        ("metadata.csv", "file_name,text\n1.png,ö\n".encode("latin-1"), "table cannot be read: .*csv"),
        ("metadata.jsonl", b'{"file_name": "1.png", "text": "a"}\n\n{"file', "not JSON: .*jsonl: line 3"),
        ("metadata.jsonl", b'["1.png", "a"]\n', "not a JSON object: .*line 1"),
        ("metadata.jsonl", b'{"file_name": "1.png", "text": ["a", "b"]}\n', r"no text in .*: \['a', 'b'\]"),
        (
            "metadata.jsonl",
            b'{"file_name": "1.png", "text": "a"}\n{"file_name": "1.png", "text": "b"}\n',
            r"two captions of one image: `1\.png`",
        ),
        ("1.txt", "ö".encode("latin-1"), r"not text in UTF-8: .*1\.txt"),
    ],
)
def test_captions_that_cannot_be_read(divided, name, content, message):
    (divided / "train" / name).write_bytes(content)
    with pytest.raises(BadInputError, match=message) as caught:
        all_captions(load(divided))
    assert caught.value.hint


def test_images_alone_need_no_readable_captions(divided):
    (divided / "train" / "metadata.csv").write_text("nothing of use")
    assert load(divided).batch(torch.arange(3)).shape == (3, *SHAPE)
    assert load(divided).conditioning(torch.arange(3)) == {}


def test_sub_folders_are_classes_and_the_same_in_both_splits(pictures):
    folder = pictures("train/cat/1.png", "train/dog/a/1.png", "train/dog/b.png", "test/ant/1.png", "test/dog/1.png")
    (folder / "train" / "annotations").mkdir()
    (folder / "train" / ".thumbnails").mkdir()
    (folder / "train" / ".thumbnails" / "1.png").write_bytes(b"")
    assert all_labels(load(folder)) == [1, 2, 2] and all_labels(load(folder, "test")) == [0, 2]
    assert load(folder).has_classes


def test_a_folder_without_images_beside_train_makes_no_class_of_it(pictures):
    """As archives have them: `train/` with classes, and a folder of annotations."""
    names = [f"train/{animal}/{number}.png" for animal in ("cat", "dog") for number in range(20)]
    folder = pictures(*names)
    (folder / "annotations" / "xml").mkdir(parents=True)
    (folder / "annotations" / "xml" / "1.xml").write_text("<a/>")
    assert set(all_labels(load(folder))) == {0, 1}
    assert len(load(folder)) + len(load(folder, "test")) == 40


def test_parts_may_be_written_with_capitals(pictures):
    folder = pictures("Train/cat/1.png", "Train/dog/1.png", "Train/dog/2.png", "Test/dog/1.png")
    assert all_labels(load(folder)) == [0, 1, 1] and all_labels(load(folder, "test")) == [1]


def test_an_image_outside_the_classes_is_named(pictures):
    folder = pictures("train/cat/1.png", "train/9.png", "test/1.png")
    with pytest.raises(BadInputError, match=r"class labels are missing for 1 of 2 images, such as `.*9\.png`"):
        all_labels(load(folder))
    assert not load(folder).has_classes


def test_labels_of_a_table_come_before_sub_folders_and_keep_their_numbers(pictures):
    folder = pictures("train/cat/1.png", "train/dog/1.png", "test/dog/1.png")
    json_lines(folder / "train" / "metadata.jsonl", *named("label", **{"cat/1": 7, "dog/1": 3}))
    assert all_labels(load(folder)) == [7, 3]
    json_lines(folder / "train" / "metadata.jsonl", *named("text", **{"cat/1": "a cat", "dog/1": "a dog"}))
    assert all_labels(load(folder)) == [0, 1]


def test_labels_of_a_spreadsheet_beside_captions(divided):
    (divided / "train" / "metadata.csv").write_text("file_name,text,label\n1.png,a,2\n2.png,b,0\n3.png,c,10\n")
    assert all_labels(load(divided)) == [2, 0, 10] and all_captions(load(divided)) == ["a", "b", "c"]


def test_labels_that_a_table_leaves_out_are_counted_and_one_is_named(divided):
    json_lines(divided / "train" / "metadata.jsonl", *named("label", _1=2, _2=-1, _3=None))
    with pytest.raises(BadInputError, match=r"class labels are missing for 2 of 3 images, .*2\.png`") as caught:
        all_labels(load(divided))
    assert "metadata.jsonl" in caught.value.hint


@pytest.mark.parametrize("label", ["dog", 1.5, True, -3])
def test_labels_of_a_table_that_are_no_numbers(divided, label):
    json_lines(divided / "train" / "metadata.jsonl", *named("label", _1=label))
    with pytest.raises(BadInputError, match=r"class label is no number in `.*metadata\.jsonl`"):
        all_labels(load(divided))


def test_two_labels_of_one_image(divided):
    json_lines(divided / "train" / "metadata.jsonl", *named("label", _1=1), *named("label", _1=2))
    with pytest.raises(BadInputError, match=r"two class labels of one image: `1\.png`"):
        all_labels(load(divided))


@pytest.fixture
def tars(tmp_path, picture):
    """A function (members of the training shard) → a folder of that shard and one for tests."""

    def made(**members):
        for split, content in (("train", members), ("test", {"9.png": picture(9)})):
            (tmp_path / split).mkdir()
            with tarfile.open(tmp_path / split / "0.tar", "w") as tar:
                for name, value in content.items():
                    member = tarfile.TarInfo(name)
                    member.size = len(value)
                    tar.addfile(member, io.BytesIO(value))
        return tmp_path

    return made


def test_texts_and_json_of_the_same_sample(tars, picture):
    """As img2dataset writes them, with both; before or after the image; in folders of their own."""
    folder = tars(
        **{
            "1.json": b'{"caption": "of the json", "width": 5}',
            "1.png": picture(1),
            "1.txt": b"of the text\n",
            "2.json": b'{"caption": "b"}',
            "2.jpg": picture(2, "JPEG"),
            "a/2.txt": b"c",
            "a/2.mask.txt": b"no caption",
            "a/2.png": picture(3),
            "4.txt": b"d",
            "4.png": picture(4),
        }
    )
    images = load(folder)
    assert all_captions(images) == ["of the text", "b", "c", "d"]
    assert images.captions(torch.tensor([3, 1])) == ["d", "b"]
    assert all_captions(load(folder)) == ["of the text", "b", "c", "d"]  # by the index that was kept


def test_missing_captions_in_a_tar_are_counted_and_one_is_named(tars, picture):
    members = {"1.png": picture(1), "1.txt": b"a", "2.png": picture(2), "3.png": picture(3), "3.json": b'{"a": 1}'}
    with pytest.raises(BadInputError, match=r"captions are missing for 2 of 3 images, such as `.*0\.tar: 2\.png`"):
        all_captions(load(tars(**members)))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("2.txt", b"\xff\xfe", r"not text in UTF-8: .*0\.tar: image 2"),
        ("2.json", b'{"caption"', r"not JSON: .*0\.tar: image 2"),
        ("2.json", b"[]", r"not a JSON object: .*0\.tar: image 2"),
        ("2.json", b'{"caption": 5}', r"no text in .*0\.tar: image 2 .*: 5"),
        ("2.json", b'{"caption": "a", "text": "b"}', r"two columns of captions, .*0\.tar: image 2"),
    ],
)
def test_captions_in_a_tar_that_cannot_be_read(tars, picture, name, content, message):
    folder = tars(**{"1.png": picture(1), "1.txt": b"a", "2.png": picture(2), name: content})
    with pytest.raises(BadInputError, match=message) as caught:
        all_captions(load(folder))
    assert caught.value.hint


def test_labels_in_a_tar(tars, picture):
    folder = tars(**{"1.png": picture(1), "1.cls": b"7\n", "2.cls": b"3", "2.png": picture(2)})
    assert all_labels(load(folder)) == [7, 3]


def test_labels_in_a_tar_that_are_no_numbers_or_missing(tars, picture):
    folder = tars(**{"1.png": picture(1), "1.cls": b"dog", "2.png": picture(2)})
    with pytest.raises(BadInputError, match=r"no number: b'dog' beside `.*0\.tar: 1\.png`"):
        all_labels(load(folder))
    with pytest.raises(BadInputError, match=r"missing for 1 of 1 images, such as `.*0\.tar: 2\.png`"):
        load(folder).class_labels(torch.tensor([1]))


def test_captions_of_a_tar_that_became_shorter(tars, picture):
    folder = tars(**{"1.png": picture(1), "1.txt": b"a"})
    images = load(folder)
    (folder / "train" / "0.tar").write_bytes((folder / "train" / "0.tar").read_bytes()[:600])
    with pytest.raises(CorruptArtifactError, match=r"sample cannot be read: .*0\.tar"):
        all_captions(images)


@pytest.fixture
def tables(tmp_path, picture):
    """A function (columns of training rows, features) → a folder of a Parquet file or a saved data set."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()

    def made(columns, features=None, name="train", saved=False):
        count = len(next(iter(columns.values())))
        noted = {"image": datasets.Image(), **(features or {})}
        rows = {"image": [{"bytes": picture(level), "path": None} for level in range(count)], **columns}
        plain = datasets.Dataset.from_dict(rows).features
        table = datasets.Dataset.from_dict(rows, features=datasets.Features({**plain, **noted}))
        if saved:
            table.save_to_disk(tmp_path / name)
        else:
            table.to_parquet(tmp_path / f"{name}.parquet")
        return tmp_path

    made({"text": ["z"]}, name="test")
    return made


@pytest.mark.parametrize("column", ["text", "caption"])
def test_a_column_of_captions_in_parquet(tables, column):
    folder = tables({column: ["a", "b", "c"], "url": ["x", "y", "z"], "label": [1, 0, 1]})
    images = load(folder)
    assert all_captions(images) == ["a", "b", "c"] and images.captions(torch.tensor([2, 2])) == ["c", "c"]
    assert all_labels(images) == [1, 0, 1]
    assert all_captions(load(folder, "test")) == ["z"]


def test_rows_of_several_files_are_counted_through(tables):
    tables({"text": ["a", "b"]}, name="train-0")
    folder = tables({"text": ["c", "d"]}, name="train-1")
    assert all_captions(load(folder)) == ["a", "b", "c", "d"]


def test_rows_that_are_divided_keep_their_captions(tables):
    folder = tables({"text": [str(number) for number in range(40)]}, name="beans", saved=True)
    for split in ("train", "test"):
        images = load(folder / "beans", split)
        assert all_captions(images) == [images.encoded.where(index).split()[-1] for index in range(len(images))]


def test_classes_give_labels_and_their_names_captions(tables):
    import datasets

    kinds = {"species": datasets.ClassLabel(names=["cat", "dog"])}
    folder = tables({"species": [1, 0, 1]}, kinds)
    assert all_captions(load(folder)) == ["dog", "cat", "dog"] and all_labels(load(folder)) == [1, 0, 1]


def test_rows_without_caption_or_class(tables):
    import datasets

    folder = tables({"text": ["a", None, "c"], "label": [1, 0, -1]}, {"label": datasets.ClassLabel(names=["x", "y"])})
    with pytest.raises(BadInputError, match=r"captions are missing for 1 of 3 images, such as `.*: row 1`"):
        all_captions(load(folder))
    with pytest.raises(BadInputError, match=r"class labels are missing for 1 of 3 images, such as `.*: row 2`"):
        all_labels(load(folder))


def test_tables_without_captions_or_classes(tables):
    folder = tables({"url": ["x", "y"], "label": ["cat", "dog"]})
    with pytest.raises(BadInputError, match="captions are missing for 2 of 2 images"):
        all_captions(load(folder))
    with pytest.raises(BadInputError, match="class labels are missing for 2 of 2 images") as caught:
        all_labels(load(folder))
    assert "numbers in a column `label`" in caught.value.hint and "class_encode_column" in caught.value.hint


def test_two_columns_of_captions(tables):
    folder = tables({"text": ["a"], "caption": ["b"]})
    with pytest.raises(BadInputError, match=r"two columns of captions, `text` and `caption`: `.*train\.parquet`"):
        all_captions(load(folder))


def test_two_columns_of_classes(tables):
    import datasets

    kind = datasets.ClassLabel(names=["x", "y"])
    folder = tables({"fine": [0], "coarse": [1]}, {"fine": kind, "coarse": kind})
    with pytest.raises(BadInputError, match=r"several columns of class labels \(`fine`, `coarse`\)") as caught:
        all_labels(load(folder))
    assert "remove_columns" in caught.value.hint


def test_files_that_name_their_classes_differently(tables):
    import datasets

    tables({"label": [0]}, {"label": datasets.ClassLabel(names=["cat", "dog"])}, name="train-0")
    folder = tables({"label": [0]}, {"label": datasets.ClassLabel(names=["dog", "cat"])}, name="train-1")
    with pytest.raises(BadInputError, match="name their classes differently"):
        all_captions(load(folder))


def test_labels_and_names_of_classes():
    images = fashion_mnist.load("test", fashion_mnist.packaged_folder())
    indices = torch.tensor([0, 1, 2])
    labels = images.class_labels(indices)
    assert labels.dtype == torch.int64 and labels.tolist() == images.labels[:3].tolist()
    named = ImageArray("shop", images.pixels, images.labels, "0", fashion_mnist.CLASSES)
    for caption, label in zip(named.captions(indices), labels, strict=True):
        assert caption.startswith("a photo of a") and caption.endswith(fashion_mnist.CLASSES[label])
    assert images.captions(indices)[0] == "a photo of an ankle boot"  # the first test image
    assert images.conditioning(indices) == {} and torch.equal(images.shown(indices), indices)
    assert images.original_sizes(indices).tolist() == [[28, 28]] * 3


def test_without_names_there_are_no_captions():
    images = ImageArray("static", np.zeros((2, 1, 4, 4), np.uint8), np.zeros(2, np.uint8), "0")
    with pytest.raises(BadInputError, match="images of static have no captions"):
        images.captions(torch.tensor([0]))


def test_what_is_told_is_of_the_images_that_are_shown(pictures, levels):
    folder = pictures("train/a/1.png", "train/b/1.png", "train/c/1.png", "test/1.png")
    (folder / "train" / "b" / "1.png").write_bytes(b"no image")
    indices = torch.tensor([0, 1, 2, 1])
    for batch_first in (True, False):
        found = load(folder)
        images = Conditioned(found, ClassLabels.of(found))
        shown = images.batch(indices) if batch_first else None
        told = images.conditioning(indices)["class_labels"]
        assert told.dtype == torch.int64 and told.tolist() == [0, 2, 2, 2]
        assert shown is None or levels(shown) == [0, 2, 2, 2]


def test_conditioned_images_are_the_images_and_what_is_told_of_them(pictures):
    plain = load(pictures("train/a/1.png", "train/b/1.png", "test/1.png"))
    images = Conditioned(plain, ClassLabels.of(plain))
    assert (images.name, images.shape, len(images)) == (plain.name, SHAPE, 2)
    assert torch.equal(images.batch(torch.tensor([1])), plain.batch(torch.tensor([1])))
    relabelled = Conditioned(plain, ClassLabels(torch.tensor([1, 0])))
    assert len({images.sha256, relabelled.sha256, plain.sha256}) == 3
    assert images.sha256 == Conditioned(plain, ClassLabels(torch.tensor([0, 1]))).sha256
    assert list(images.conditioning(torch.tensor([1]))) == ["class_labels"]


def test_a_model_that_asks_for_the_frame_is_told_that_images_are_whole(pictures):
    class Framed(ClassLabels):
        framing = True

    images = Conditioned(load(pictures("train/1.png", "train/2.png", "test/1.png")), Framed(torch.tensor([5, 6])))
    told = images.conditioning(torch.tensor([1, 0, 1]))
    assert told["class_labels"].tolist() == [6, 5, 6] and told["time_ids"].tolist() == [[4, 4, 0, 0, 4, 4]] * 3


def test_what_is_told_of_other_images_is_refused(pictures):
    with pytest.raises(BadInputError, match="what is told of 3 images does not fit 1 images"):
        Conditioned(load(pictures("train/1.png", "test/1.png")), ClassLabels(torch.arange(3)))


def test_sizes_are_those_of_the_images_as_a_viewer_shows_them(tmp_path):
    from PIL import Image

    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        picture = Image.new("L", (30, 20), 9)
        picture.save(tmp_path / split / "1.png")
        exif = Image.Exif()
        exif[0x0112] = 6  # turned by a quarter
        picture.save(tmp_path / split / "2.jpg", exif=exif)
    assert load(tmp_path).original_sizes(torch.tensor([0, 1, 0])).tolist() == [[20, 30], [30, 20], [20, 30]]
