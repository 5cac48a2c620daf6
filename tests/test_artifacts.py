"""Artefacts: whole or not there, described, and found out when they change."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from edgediff import artifacts
from edgediff.artifacts import (
    atomic_file,
    atomic_folder,
    claims,
    content_hash,
    first_file,
    read_json,
    read_result,
    result_up_to_date,
    up_to_date,
    verify,
    write_json,
    write_manifest,
    write_result,
    write_text,
)
from edgediff.errors import BadInputError, CorruptArtifactError, StageFailedError

DESCRIPTION = {"stage": "prune", "config": {"ratio": 0.5, "widths": (1, 2)}, "inputs": {"teacher": "abc"}}


def make(folder, text="content"):
    with atomic_folder(folder) as temporary:
        (temporary / "sub").mkdir()
        (temporary / "sub" / "file.txt").write_text(text)
        write_manifest(temporary, **DESCRIPTION, extra=3)
    return folder


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_failure_leaves_what_was_there(tmp_path):
    file, folder = tmp_path / "file", make(tmp_path / "folder")
    file.write_text("old")
    with pytest.raises(RuntimeError), atomic_file(file) as temporary:
        temporary.write_text("new")
        raise RuntimeError
    with pytest.raises(RuntimeError), atomic_folder(folder) as temporary:
        (temporary / "other").write_text("new")
        raise RuntimeError
    assert file.read_text() == "old"
    verify(folder)
    assert names(tmp_path) == ["file", "folder"]


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    folder = make(tmp_path / "folder")
    before = content_hash(folder)
    (folder / "stray").write_text("left over")
    make(folder, "other content")
    assert names(folder) == ["manifest.json", "sub"]
    assert content_hash(folder) != before
    assert names(tmp_path) == ["folder"]


def test_files_have_the_permissions_of_new_files(tmp_path):
    with atomic_file(tmp_path / "private") as temporary:
        temporary.touch(0o600)
    (tmp_path / "ordinary").touch()
    assert (tmp_path / "private").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_what_is_known_of_the_inputs_decides_whether_a_folder_claims_to_be_finished(tmp_path):
    own = {"stage": "prune", "config": {"ratio": 0.5}}
    write_manifest(tmp_path, **own, inputs={"teacher": "a", "images": "b"})
    assert claims(tmp_path, **own, known={}) and claims(tmp_path, **own, known={"teacher": "a"})
    assert not claims(tmp_path, **own, known={"teacher": "c"})
    assert not claims(tmp_path, stage="prune", config={"ratio": 0.6}, known={})


def test_up_to_date_means_the_same_stage_config_and_inputs(tmp_path):
    folder = make(tmp_path / "folder")
    assert up_to_date(folder, **DESCRIPTION)
    assert not up_to_date(tmp_path / "none", **DESCRIPTION)
    for change in ({"stage": "distill"}, {"config": {"ratio": 0.4}}, {"inputs": {"teacher": "abd"}}):
        assert not up_to_date(folder, **{**DESCRIPTION, **change})
    assert read_json(folder / "manifest.json")["extra"] == 3


def test_what_decides_nothing_may_differ(tmp_path):
    write_text(tmp_path / "weights", "w")
    config = {"kd": {"place": 1.0}, "training": {"steps": 3, "every": 2}, "every": 5}
    write_manifest(tmp_path, stage="distill", config=config, inputs={})
    aside = ("training.every",)
    for other, same in (
        ({**config, "training": {"steps": 3, "every": 7}}, True),
        ({**config, "training": {"steps": 3}}, True),  # written by another version
        ({**config, "training": {"steps": 4, "every": 2}}, False),
        ({**config, "every": 7}, False),
        ({**config, "kd": {"every": 1}}, False),
    ):
        assert up_to_date(tmp_path, stage="distill", config=other, inputs={}, aside=aside) == same
    assert not up_to_date(tmp_path, stage="distill", config={**config, "training": {"every": 7}}, inputs={})


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_damage_is_found_and_named(tmp_path, damage):
    folder = make(tmp_path / "folder")
    file = folder / "sub" / "file.txt"
    file.write_text("contenT") if damage == "changed" else file.unlink()
    with pytest.raises(CorruptArtifactError, match=r"file\.txt") as caught:
        up_to_date(folder, **DESCRIPTION)
    assert "run the stage again" in caught.value.hint


def test_damage_never_enters_the_hash_of_a_folder(tmp_path):
    folder = make(tmp_path / "folder")
    (folder / "sub" / "file.txt").write_text("contenT")
    with pytest.raises(CorruptArtifactError, match=r"file\.txt"):
        content_hash(folder)
    verify(folder, "elsewhere")  # only the named parts are read


@pytest.mark.parametrize("content", ["[]", "{", "{}", '{"files": 3}'])
def test_a_manifest_that_is_none(tmp_path, content):
    folder = make(tmp_path / "folder")
    (folder / "manifest.json").write_text(content)
    with pytest.raises(CorruptArtifactError, match=r"manifest\.json") as caught:
        verify(folder)
    assert "delete" in caught.value.hint


def test_the_same_content_has_the_same_hash_wherever_and_whenever(tmp_path):
    assert content_hash(make(tmp_path / "one")) == content_hash(make(tmp_path / "two"))


def test_a_clone_records_its_commit():
    done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent)
    if done.returncode:
        pytest.skip("not in a clone with commits")
    assert artifacts.made()["commit"].removesuffix("+changes") == done.stdout.strip()


def test_a_result_file_carries_its_description(tmp_path):
    path = tmp_path / "latency.json"
    write_result(path, {"rows": [1]}, **DESCRIPTION)
    assert read_result(path) == {"rows": [1]}
    assert result_up_to_date(path, **DESCRIPTION)
    assert not result_up_to_date(path, **{**DESCRIPTION, "inputs": {}})
    assert set(json.loads(path.read_text())["made"]) >= {"at", "versions", "device", "system"}


def test_json_files_that_are_missing_or_broken(tmp_path):
    with pytest.raises(BadInputError, match="not found"):
        read_json(tmp_path / "none.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(CorruptArtifactError, match="broken"):
        read_json(tmp_path / "broken.json")


def test_infinity_is_not_written_as_json(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "value.json", {"psnr": float("inf")})
    assert names(tmp_path) == []


def test_a_full_disk_names_the_path_and_keeps_the_last_good_artefact(tiny_disk):
    folder = make(tiny_disk / "student")
    with pytest.raises(StageFailedError, match="student") as caught, atomic_folder(folder) as temporary:
        (temporary / "weights").write_bytes(os.urandom(1_000_000))
    assert "free some space" in caught.value.hint
    verify(folder)
    assert names(tiny_disk) == ["student"]


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(os.urandom(1_000_000)),
        lambda path: save_file({"weight": torch.zeros(250_000)}, path),
        lambda path: np.zeros(250_000, dtype=np.float32).tofile(path),
    ],
    ids=["python", "safetensors", "numpy"],
)
def test_a_full_disk_is_known_whoever_writes(tiny_disk, write):
    (tiny_disk / "state").write_text("old")
    with (
        pytest.raises(StageFailedError, match=r"no space left while writing: .*state"),
        atomic_file(tiny_disk / "state") as temporary,
    ):
        write(temporary)
    assert (tiny_disk / "state").read_text() == "old"
    assert names(tiny_disk) == ["state"]


def test_other_errors_of_a_writer_are_not_called_a_full_disk(tmp_path):
    with pytest.raises(PermissionError), atomic_file(tmp_path / "file"):
        raise PermissionError(errno.EACCES, "Permission denied")


def test_what_killed_writers_left_goes_with_the_next_write(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    here = artifacts._machine()
    gone, living = f"{here}.{dead.pid}", f"{here}.{os.getppid()}"
    for writer in (gone, living):
        (tmp_path / f".folder.{writer}.tmp").mkdir()
        (tmp_path / f".folder.{writer}.tmp" / "half").write_text("")
        (tmp_path / f".file.{writer}.tmp").write_text("half")
    (tmp_path / f".folder.{gone}.old").mkdir()
    (tmp_path / f".folder2.{gone}.tmp").mkdir()  # somebody else's
    make(tmp_path / "folder")
    write_json(tmp_path / "file", {})
    expected = ["file", "folder", f".file.{living}.tmp", f".folder.{living}.tmp", f".folder2.{gone}.tmp"]
    assert names(tmp_path) == sorted(expected)


def test_another_machines_writer_is_left_alone_for_a_day(tmp_path):
    """Its process number means nothing here, where it may be nobody's."""
    working, killed = (tmp_path / f".file.{machine}.999999.tmp" for machine in ("elsewhere", "gone"))
    working.write_text("half")
    killed.write_text("half")
    os.utime(killed, (0, 0))
    write_json(tmp_path / "file", {})
    assert names(tmp_path) == [".file.elsewhere.999999.tmp", "file"]


def test_of_several_first_files_the_first_stays(tmp_path):
    with first_file(tmp_path / "file") as mine:
        mine.write_text("late")
        (tmp_path / "file").write_text("early")
    assert (tmp_path / "file").read_text() == "early"
    with first_file(tmp_path / "other") as mine:
        mine.write_text("alone")
    assert (tmp_path / "other").read_text() == "alone"
    assert names(tmp_path) == ["file", "other"]


def test_a_full_disk_while_writing_a_file(tmp_path, monkeypatch):
    (tmp_path / "report.json").write_text("{}")

    def no_space(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(artifacts, "_publish", no_space)
    with pytest.raises(StageFailedError, match=r"report\.json"):
        write_json(tmp_path / "report.json", {"new": 1})
    assert (tmp_path / "report.json").read_text() == "{}"
    assert names(tmp_path) == ["report.json"]
