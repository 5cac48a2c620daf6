"""Images decoded when asked for: damaged ones, and decoding ahead."""

import os
import signal
import threading

import pytest
import torch

from edgediff.data.encoded import DAMAGED_IN_A_ROW, EncodedImages
from edgediff.errors import CorruptArtifactError

SHAPE = (1, 4, 4)


class Shelf:
    """Encoded images in memory, which notes who read what."""

    sha256 = "0" * 64

    def __init__(self, encoded):
        self.encoded, self.read_by = encoded, []

    def __len__(self):
        return len(self.encoded)

    def read(self, index):
        self.read_by.append((index, threading.current_thread().name))
        if self.encoded[index] is None:
            raise OSError("input/output error")
        return self.encoded[index]

    def where(self, index):
        return f"shelf: {index}"


@pytest.fixture
def shelf(picture):
    return Shelf([picture(level) for level in range(20)])


def test_images_come_as_they_were_asked_for(shelf, output, levels):
    images = EncodedImages("shelf", shelf, SHAPE, output.say)
    assert levels(images.batch(torch.tensor([3, 17, 3, 0]))) == [3, 17, 3, 0]
    assert sorted(index for index, _ in shelf.read_by) == [0, 3, 17]  # each once


def test_a_forked_process_decodes_too(shelf, output):
    """Threads do not survive a fork; the parent's have been at work before."""
    images = EncodedImages("shelf", shelf, SHAPE, output.say)
    expected = images.batch(torch.arange(8))
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # a child that waits for its parent's threads would wait for ever
        os._exit(0 if torch.equal(images.batch(torch.arange(8)), expected) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_the_next_whole_image_stands_in_for_a_damaged_one(shelf, output, levels):
    shelf.encoded[4] = shelf.encoded[4][:30]
    shelf.encoded[5] = b""
    shelf.encoded[19] = b"no image at all"
    images = EncodedImages("shelf", shelf, SHAPE, output.say)
    for _ in range(2):
        assert levels(images.batch(torch.tensor([3, 4, 5, 6, 19]))) == [3, 6, 6, 6, 0]
    assert sorted(said.split("`")[1] for said in output.said) == ["shelf: 19", "shelf: 4", "shelf: 5"]
    assert all("the next one takes its place" in said for said in output.said)
    assert [index for index, _ in shelf.read_by].count(19) == 1  # what is known to be damaged is not tried again


def test_too_many_damaged_in_a_row_are_a_damaged_source(shelf, output, levels):
    for index in range(2, 2 + DAMAGED_IN_A_ROW):
        shelf.encoded[index] = b""
    images = EncodedImages("shelf", shelf, SHAPE, output.say)
    assert levels(images.batch(torch.tensor([3]))) == [2 + DAMAGED_IN_A_ROW]
    with pytest.raises(CorruptArtifactError, match="cannot be decoded: `shelf: 2`"):
        images.batch(torch.tensor([2]))


def test_a_source_of_one_damaged_image_has_no_next(output):
    with pytest.raises(CorruptArtifactError, match="shelf: 0"):
        EncodedImages("shelf", Shelf([b""]), SHAPE, output.say).batch(torch.tensor([0]))


def test_what_cannot_be_read_is_an_error_at_once(shelf, output):
    """The disk may give it the next time, so no other image may stand in."""
    shelf.encoded[7] = None
    with pytest.raises(CorruptArtifactError, match="cannot be read: `shelf: 7`") as caught:
        EncodedImages("shelf", shelf, SHAPE, output.say).batch(torch.tensor([7]))
    assert "input/output error" in caught.value.hint and not output.said
