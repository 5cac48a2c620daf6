"""Stores of many shards on systems that give a process few open files."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256

import pytest
import torch

from edgediff.data import shards
from edgediff.encoding import store
from edgediff.errors import BadInputError
from edgediff.output import Output

ROWS, OPEN = 24, 4


@pytest.fixture
def filled(tmp_path, monkeypatch):
    """A store of one row a shard, of two tensors."""
    monkeypatch.setattr(store, "SHARD_BYTES", 1)
    monkeypatch.setattr(shards, "OPEN", OPEN)

    def encode(first, last):
        values = torch.arange(first, last)
        return {"number": values.int(), "half": values[:, None] / 2}

    settings = {"count": ROWS, "inputs": {}, "facts": {}, "batch_size": 1, "output": Output()}
    return store.fill(tmp_path, "numbers", encode, **settings)


def test_any_row_can_be_read_with_few_shards_open(filled):
    assert len(list(filled.folder.glob("shard-*"))) == ROWS
    before = len(os.listdir("/dev/fd"))
    for rows in (torch.arange(ROWS), torch.arange(ROWS).flip(0)):
        number, half = filled.read(rows, "number", "half")
        assert torch.equal(number, rows.int()) and torch.equal(half[:, 0], rows.half() / 2)
    assert 0 < len(os.listdir("/dev/fd")) - before <= OPEN


def test_two_runs_fill_a_cache_once(tmp_path):
    """The second waits, says so, and finds what the first has made."""
    begun, waiting, made = threading.Event(), threading.Event(), []

    class Telling(Output):
        def say(self, text):
            assert text == f"waiting for another run that fills the numbers cache: `{tmp_path}`"
            waiting.set()

    def encode(first, last):
        begun.set()
        assert waiting.wait(60)
        made.extend(range(first, last))
        return {"number": torch.arange(first, last)}

    def fill(output):
        settings = {"count": ROWS, "inputs": {}, "facts": {}, "batch_size": 8}
        return store.fill(tmp_path, "numbers", encode, **settings, output=output)

    with ThreadPoolExecutor() as runs:
        first = runs.submit(fill, Output("quiet"))
        assert begun.wait(60)
        second = fill(Telling("quiet"))
    assert made == list(range(ROWS)) and first.result().sha256 == second.sha256


def test_what_was_made_otherwise_is_told_with_values_that_fit_a_sentence(tmp_path):
    one, other = (sha256(word).hexdigest() for word in (b"one", b"other"))
    found = {"teacher": f"{one}+{other}", "seed": "0", "points": "down.0, " * 20}
    with pytest.raises(BadInputError) as caught:
        shards.refuse_another("cache", tmp_path, {"teacher": other, "seed": "0"}, found, "")
    teachers = f"teacher ({one[:8]}+{other[:8]} → {other[:8]})"
    points = f"points ({'down.0, ' * 7}down… → not given)"
    assert caught.value.message == f"the cache was made with another {points}, {teachers}: `{tmp_path}`"
