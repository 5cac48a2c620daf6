"""WebDataset tars: read by index, indexed once, resumed exactly."""

import io
import tarfile

import numpy as np
import pytest
import torch

from edgediff import data
from edgediff.data.order import visited
from edgediff.data.tars import TarIndex
from edgediff.errors import BadInputError, CorruptArtifactError
from edgediff.recipe import DataConfig

SHAPE = (1, 4, 4)


def load(folder, split="train", output=None):
    return data.load(DataConfig(name=str(folder)), split, shape=SHAPE, output=output)


def write_tar(path, members, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def shard(picture, numbers, kind="PNG"):
    """A shard as img2dataset writes it: image, caption and metadata of every sample."""
    members = {}
    for number in numbers:
        members[f"{number:09}.{kind.lower()}"] = picture(number, kind)
        members[f"{number:09}.txt"] = b"a grey square"
        members[f"{number:09}.json"] = b"{}"
    return members


@pytest.fixture
def shards(tmp_path, picture):
    """Three shards of twenty samples."""
    folder = tmp_path / "laion"
    for number in range(3):
        write_tar(folder / f"{number:05}.tar", shard(picture, range(20 * number, 20 * number + 20)))
        (folder / f"{number:05}.parquet").write_bytes(b"what img2dataset writes beside")
    return folder


def test_every_image_is_in_one_split_in_the_order_of_the_tars(shards, levels):
    train, test = load(shards), load(shards, "test")
    both = [levels(images.batch(torch.arange(len(images)))) for images in (train, test)]
    assert sorted(both[0] + both[1]) == list(range(60))
    assert both == [sorted(numbers) for numbers in both]
    assert train.name == "laion/train" and train.sha256 != test.sha256


def test_an_image_keeps_its_split_when_shards_are_added(shards, picture, levels):
    def test_images():
        images = load(shards, "test")
        return levels(images.batch(torch.arange(len(images))))

    before = test_images()
    write_tar(shards / "00000a.tar", shard(picture, range(60, 80)))
    assert [number for number in test_images() if number < 60] == before


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_and_folders_in_a_tar(tmp_path, picture, levels, format):
    """In two of the formats a long name is a block of its own before the image."""
    members = {f"{'deep/' * 18}{number:080}.png": picture(number) for number in range(5)}
    write_tar(tmp_path / "train" / "1.tar", members, format=format)
    write_tar(tmp_path / "val" / "1.tar", {"./1.WEBP": picture(3, "PNG")})
    assert levels(load(tmp_path).batch(torch.arange(5))) == [0, 1, 2, 3, 4]
    assert levels(load(tmp_path, "test").batch(torch.tensor([0]))) == [3]


def test_only_image_files_count(tmp_path, picture):
    members = {"1.png": picture(1), "1.txt": b"", "1.json": b"{}", "folder.png/2.jpg": picture(2), "._1.png": b"mac"}
    write_tar(tmp_path / "train-0.tar", members)
    with tarfile.open(tmp_path / "train-0.tar", "a") as tar:
        link = tarfile.TarInfo("3.png")
        link.type, link.linkname = tarfile.SYMTYPE, "1.png"
        tar.addfile(link)
    write_tar(tmp_path / "test-0.tar", {"9.png": picture(9)})
    images = load(tmp_path)
    where = [images.encoded.where(index).split(": ")[1] for index in range(len(images))]
    assert where == ["1.png", "folder.png/2.jpg"]


def test_names_of_shards_may_say_the_split(tmp_path, picture, levels):
    write_tar(tmp_path / "imagenet-train-000000.tar", shard(picture, range(3)))
    write_tar(tmp_path / "imagenet-train-000001.tar", shard(picture, range(3, 6)))
    write_tar(tmp_path / "imagenet-val-000000.tar", shard(picture, range(6, 8)))
    assert levels(load(tmp_path).batch(torch.arange(6))) == list(range(6))
    assert levels(load(tmp_path, "test").batch(torch.arange(2))) == [6, 7]


def test_a_tar_is_read_through_once(shards, output, user_cache):
    first = load(shards, output=output)
    assert output.shown == [("index tars", 3)]
    second = load(shards, "test", output=output)
    assert output.shown == [("index tars", 3)]
    assert len(first) + len(second) == 60
    kept = list(user_cache.rglob("*.npz"))
    assert len(kept) == 3 and all(path.is_relative_to(user_cache / "edgediff") for path in kept)
    assert {path.suffix for path in shards.iterdir()} == {".tar", ".parquet"}  # nothing beside the user's files


def test_a_changed_tar_is_read_again(shards, output, picture, levels):
    before = load(shards, output=output).sha256
    write_tar(shards / "00001.tar", shard(picture, range(100, 130)))
    images = load(shards, output=output)
    assert output.shown == [("index tars", 3), ("index tars", 1)]
    assert len(images) + len(load(shards, "test")) == 70
    assert images.sha256 != before
    numbers = levels(images.batch(torch.arange(len(images))))
    assert set(numbers) <= {*range(20), *range(40, 60), *range(100, 130)}


def test_a_damaged_index_is_made_again(shards, output, user_cache):
    images = load(shards)
    for damage, path in zip((b"", b"PK\x03\x04 torn", b"\x93NUMPY"), sorted(user_cache.rglob("*.npz")), strict=True):
        path.write_bytes(damage)
    again = load(shards, output=output)
    assert output.shown == [("index tars", 3)]
    assert again.sha256 == images.sha256


def test_without_a_place_for_indices_it_works_and_says_so(shards, output, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(load(shards, output=output)) > 40
    assert len(output.said) == 1 and "cannot be kept" in output.said[0]


def test_the_index_of_a_tar(tmp_path, picture):
    members = shard(picture, range(4))
    write_tar(tmp_path / "a.tar", members)
    index = TarIndex.of(tmp_path / "a.tar")
    content = (tmp_path / "a.tar").read_bytes()
    found = [content[offset : offset + size] for offset, size in zip(index.offsets, index.sizes, strict=True)]
    assert found == [value for name, value in members.items() if name.endswith(".png")]


def test_resuming_reads_what_an_uninterrupted_training_reads(shards):
    def batch(images, step):
        return images.batch(visited(torch.arange(step * 16, step * 16 + 16), count=len(images), seed=5))

    images = load(shards)
    whole = [batch(images, step) for step in range(8)]
    resumed = load(shards)
    assert all(torch.equal(batch(resumed, step), whole[step]) for step in range(5, 8))
    assert not torch.equal(whole[0], whole[1])


def test_a_damaged_image_is_replaced_the_same_way_every_time(tmp_path, picture, output, levels):
    members = shard(picture, range(10))
    members["000000004.png"] = members["000000004.png"][:40]
    write_tar(tmp_path / "train-0.tar", members)
    write_tar(tmp_path / "test-0.tar", shard(picture, range(1)))
    for _ in range(2):
        assert levels(load(tmp_path, output=output).batch(torch.tensor([3, 4, 5]))) == [3, 5, 5]
    assert "train-0.tar: 000000004.png" in output.said[0]


def test_the_digest_follows_names_and_sizes(tmp_path, picture):
    def digest(members, name="0.tar"):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        write_tar(folder / "train" / name, members)
        write_tar(folder / "test" / "0.tar", shard(picture, range(1)))
        return load(folder).sha256

    members = shard(picture, range(5))
    first = digest(members)
    assert digest(members) == first
    renamed = {name.replace("00004.", "00005."): value for name, value in members.items()}
    longer = {name: value + b"\0" * (name == "000000002.png") for name, value in members.items()}
    others = [digest(renamed), digest(longer), digest(shard(picture, range(4))), digest(members, "1.tar")]
    assert len({first, *others}) == 5


@pytest.mark.parametrize("cut", [0, 300, 5_000, -10_240 - 300])
def test_a_truncated_tar_is_named_before_any_work(shards, cut):
    path = shards / "00001.tar"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(CorruptArtifactError, match=r"not a whole tar: .*00001\.tar"):
        load(shards)


def test_a_damaged_header_in_the_middle_is_no_end(shards):
    path = shards / "00001.tar"
    content = bytearray(path.read_bytes())
    second = TarIndex.of(path).offsets[5] - tarfile.BLOCKSIZE
    content[second + 150] ^= 0xFF  # its checksum
    path.write_bytes(content)
    with pytest.raises(CorruptArtifactError, match=r"not a whole tar: .*00001") as caught:
        load(shards)
    assert f"damaged header at byte {second}" in caught.value.hint


def test_a_compressed_tar_is_refused(tmp_path, picture):
    with tarfile.open(tmp_path / "0.tar", "w:gz") as tar:
        member = tarfile.TarInfo("1.png")
        member.size = len(picture(1))
        tar.addfile(member, io.BytesIO(picture(1)))
    with pytest.raises(CorruptArtifactError, match=r"0\.tar"):
        load(tmp_path)


def test_a_tar_that_became_shorter_is_an_error(shards):
    images = load(shards)
    for path in shards.glob("*.tar"):
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CorruptArtifactError, match=r"cannot be read: .*00000\.tar"):
        images.batch(torch.tensor([5]))


def test_samples_of_two_images_are_refused(tmp_path, picture):
    write_tar(tmp_path / "0.tar", {"7.jpg": picture(1, "JPEG"), "7.txt": b"", "7.mask.png": picture(2)})
    with pytest.raises(BadInputError, match=r"two images of one sample .*`7\.jpg`, `7\.mask\.png`"):
        load(tmp_path)


def test_tars_and_loose_images_together_are_refused(shards, picture):
    (shards / "preview.png").write_bytes(picture(1))
    with pytest.raises(BadInputError, match=r"`00000\.tar` and `preview\.png`"):
        load(shards)


def test_many_tars_need_few_open_files(tmp_path, picture, levels):
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for number in range(80):
        write_tar(tmp_path / "train" / f"{number:03}.tar", {f"{number}.png": picture(number)})
    write_tar(tmp_path / "test" / "0.tar", {"0.png": picture(0)})
    images = load(tmp_path)
    resource.setrlimit(resource.RLIMIT_NOFILE, (60, hard))
    try:
        assert levels(images.batch(torch.arange(80))) == list(range(80))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_numbers_are_not_signed_to_four_bytes(tmp_path):
    """Shards may be larger than 2 GiB; the file is sparse and takes no room."""
    path = tmp_path / "big.tar"
    with path.open("wb") as file:
        big = tarfile.TarInfo("0.bin")
        big.size = 3 * 2**30
        file.write(big.tobuf())
        file.seek(big.size, 1)
        small = tarfile.TarInfo("1.png")
        small.size = 4
        file.write(small.tobuf() + b"abcd".ljust(tarfile.BLOCKSIZE, b"\0") + b"\0" * 2 * tarfile.BLOCKSIZE)
    index = TarIndex.of(path)
    assert index.offsets.dtype == np.int64
    assert index.offsets.tolist() == [3 * 2**30 + 2 * tarfile.BLOCKSIZE] and index.sizes.tolist() == [4]
