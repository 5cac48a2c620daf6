"""The log of a training: whole lines only, none of steps that are taken again, and damage told by its place."""

import pytest

from edgediff.errors import BadInputError
from edgediff.training.log import check, open_log, read


@pytest.fixture
def path(tmp_path):
    """A log of four steps."""
    path = tmp_path / "train.jsonl"
    with open_log(path, 0) as log:
        for step in range(1, 5):
            log.write(step, {"loss": step / 2})
    return path


def test_a_resumed_log_has_every_step_once(path):
    with open_log(path, 2) as log:
        log.write(3, {"loss": 9.0})
    assert [(line["step"], line["loss"]) for line in read(path)] == [(1, 0.5), (2, 1.0), (3, 9.0)]


def test_a_line_that_a_crash_tore_is_dropped(path):
    path.write_bytes(path.read_bytes()[:-3])
    with open_log(path, 4):
        pass
    assert [line["step"] for line in read(path)] == [1, 2, 3]


@pytest.mark.parametrize("damage", ['{"step": 2, "lo', "null", '{"loss": 1.0}', '{"step": "2"}', "[2]", b"\xff\xfe"])
def test_damage_is_told_by_its_place(path, damage):
    lines = path.read_bytes().splitlines()
    lines[1] = damage if isinstance(damage, bytes) else damage.encode()
    path.write_bytes(b"\n".join([*lines, b""]))
    before = path.read_bytes()
    for opened in (lambda: read(path), lambda: check(path, 4), lambda: open_log(path, 4).__enter__()):
        with pytest.raises(BadInputError, match=f"line 2 of a training's log is damaged: `{path}`"):
            opened()
    assert path.read_bytes() == before
    with open_log(path, 1):  # what follows is taken again
        pass
    assert [line["step"] for line in read(path)] == [1]
