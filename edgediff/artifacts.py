"""Artefacts on disk: hashed, described by a manifest, and written so that a reader never sees half of one.

A file or folder is written under a temporary sibling's name, flushed, and renamed. A folder artefact carries
`manifest.json`: what went in (sha256 of every input), the resolved config, what came out (sha256 of every file), and
where and when it was made. `up_to_date` decides from it whether a stage has anything left to do.
"""

from __future__ import annotations

import datetime
import errno
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from edgediff import __version__
from edgediff.errors import BadInputError, CorruptArtifactError, StageFailedError

MANIFEST = "manifest.json"
DAY = 24 * 60 * 60  # seconds
RECORDED_PACKAGES = ("torch", "diffusers", "onnx", "onnxruntime", "tensorrt-rtx-cu12", "tensorrt", "torch-pruning")


def sha256(path: Path) -> str:
    """Return the hex digest of a file's content, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(value: Any) -> str:
    """Return the hex digest of a JSON value in its canonical form (sorted keys)."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def atomic_file(path: Path) -> AbstractContextManager[Path]:
    """Give a temporary sibling to write; on success it replaces `path`, on any failure it is removed.

    Raises: StageFailedError, naming `path`, when the disk is full; what stood there before stays.
    """
    return _written(path, Path.replace)


def first_file(path: Path) -> AbstractContextManager[Path]:
    """Give a temporary sibling to write; on success it becomes `path`, unless a file stands there by then: that stays.

    For files that several processes would make alike and then write into: a rename would take them from each other.
    Raises: StageFailedError, naming `path`, when the disk is full.
    """
    return _written(path, _link)


@contextmanager
def _written(path: Path, put: Callable[[Path, Path], Any]) -> Iterator[Path]:
    with naming_full_disk(path):
        temporary = _sibling(path)
        try:
            yield temporary
            _publish(temporary)
            put(temporary, path)
            _flush(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def _link(temporary: Path, path: Path) -> None:
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without links
        temporary.replace(path)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Give an empty temporary sibling folder to fill; on success it takes the place of `path`, otherwise it goes.

    Raises: StageFailedError, naming `path`, when the disk is full; what stood there before stays.
    """
    with naming_full_disk(path):
        temporary = _sibling(path)
        previous = temporary.with_suffix(".old")
        try:
            temporary.mkdir()
            yield temporary
            for file in (*temporary.rglob("*"), temporary):
                _publish(file)
            # A folder cannot be replaced in one rename; the old one steps aside for the moment between the two. A kill
            # in that moment costs an artefact that was out of date anyway: its stage runs again.
            if path.exists():
                path.rename(previous)
            temporary.rename(path)
            _flush(path.parent)
        finally:
            if previous.exists() and not path.exists():
                previous.rename(path)
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(previous, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically, indented, ending in a newline; refuses NaN and infinity, which are not JSON."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises: BadInputError when it is missing; CorruptArtifactError when it is not JSON.
    """
    if not path.is_file():
        raise BadInputError(f"file not found: `{path}`")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CorruptArtifactError(f"not a JSON file: `{path}`", f"restore it, or delete it ({error})") from error


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises: what `read_json` raises, and CorruptArtifactError when it holds something else.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise CorruptArtifactError(f"not a JSON object: `{path}`", "restore it, or delete it")
    return value


def write_manifest(
    folder: Path, *, stage: str, config: Mapping[str, Any], inputs: Mapping[str, str], **more: Any
) -> None:
    """Describe the finished content of `folder` in its `manifest.json`.

    Args: inputs: name → sha256 of everything the content was computed from.
          more: facts of the stage worth keeping beside it (counts, timings); JSON values.
    """
    files = {
        str(file.relative_to(folder)): sha256(file)
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != MANIFEST
    }
    value = {
        "stage": stage,
        "config": dict(config),
        "inputs": dict(inputs),
        "files": files,
        **more,
        "made": made(),
    }
    write_json(folder / MANIFEST, value)


def up_to_date(
    folder: Path, *, stage: str, config: Mapping[str, Any], inputs: Mapping[str, str], aside: Collection[str] = ()
) -> bool:
    """Return whether `folder` holds the finished result of exactly this stage, config and inputs.

    Args: aside: dotted keys of the config that decide nothing of the result.
    Raises: CorruptArtifactError when it claims to and one of its files has another hash or is missing.
    """
    if not (folder / MANIFEST).is_file():
        return False
    if not _describes(read_object(folder / MANIFEST), stage, config, inputs, aside):
        return False
    verify(folder)
    return True


def claims(
    folder: Path, *, stage: str, config: Mapping[str, Any], known: Mapping[str, str], aside: Collection[str] = ()
) -> bool:
    """Return whether `folder` says that it is finished, of this stage and config; no file is read but its manifest.

    Args: known: those of its inputs whose hashes are at hand.
          aside: as of `up_to_date`.
    """
    if not (folder / MANIFEST).is_file():
        return False
    found = read_object(folder / MANIFEST)
    return _describes(found, stage, config, {**found.get("inputs", {}), **known}, aside)


def write_result(
    path: Path, value: Mapping[str, Any], *, stage: str, config: Mapping[str, Any], inputs: Mapping[str, str]
) -> None:
    """Write a stage's result that is one JSON file, with the same description that a folder has in its manifest."""
    described = {"stage": stage, "config": dict(config), "inputs": dict(inputs), "made": made()}
    write_json(path, {**value, **described})


def read_result(path: Path) -> dict[str, Any]:
    """Return a result file's own value, without the description."""
    value = read_object(path)
    return {key: value[key] for key in value if key not in ("stage", "config", "inputs", "made")}


def result_up_to_date(
    path: Path, *, stage: str, config: Mapping[str, Any], inputs: Mapping[str, str], aside: Collection[str] = ()
) -> bool:
    """Return whether the result file at `path` came from exactly this stage, config and inputs.

    Args: aside: as of `up_to_date`.
    """
    return path.is_file() and _describes(read_object(path), stage, config, inputs, aside)


def verify(folder: Path, found: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Check the files of an artefact folder against its manifest, and return the manifest.

    Args: found: file name → sha256 of files that were hashed already, to check those only; None hashes them all.
    Raises: BadInputError without a manifest; CorruptArtifactError naming the first file that differs.
    """
    manifest = read_object(folder / MANIFEST)
    again = (
        f"what a stage made: delete `{folder}` and run the stage again; a model that you changed on purpose: delete "
        f"its `{MANIFEST}` only"
    )
    for name, expected in _files(folder, manifest).items():
        path = folder / name
        if found is not None and name not in found:
            continue
        if not path.is_file():
            raise CorruptArtifactError(f"file is missing: `{path}`", again)
        if (sha256(path) if found is None else found[name]) != expected:
            raise CorruptArtifactError(f"file does not have the content its manifest records: `{path}`", again)
    return manifest


def content_hash(folder: Path) -> str:
    """Return one sha256 for all files of an artefact folder, which are what its manifest records.

    Raises: what `verify` raises: the hash goes into other manifests, so it must not stand for damaged files.
    """
    return digest(_files(folder, verify(folder)))


def _files(folder: Path, manifest: Mapping[str, Any]) -> dict[str, str]:
    if not isinstance(manifest.get("files"), dict):
        raise CorruptArtifactError(
            f"manifest lists no files: `{folder / MANIFEST}`", f"delete `{folder}` and run the stage again"
        )
    return manifest["files"]


@cache
def _versions() -> dict[str, str]:
    installed = {"edgediff": __version__, "python": platform.python_version()}
    found = {name: installed_version(name) for name in RECORDED_PACKAGES}
    return installed | {name: version for name, version in found.items() if version}


def installed_version(distribution: str) -> str | None:
    """Return the version of an installed distribution, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def made() -> dict[str, Any]:
    """Return when and where: time, versions, git commit (None outside a clone), processor, operating system."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {
        "at": now,
        "versions": _versions(),
        "commit": _commit(),
        "device": cpu_name(),
        "system": platform.platform(),
    }


@cache
def _commit() -> str | None:
    """Return the commit of the clone that edgediff runs from, with `+changes` when files differ from it."""
    clone = Path(__file__).parents[1]
    if not (clone / ".git").exists() or shutil.which("git") is None:
        return None
    git = ["git", "-C", str(clone)]
    head = subprocess.run([*git, "rev-parse", "--verify", "HEAD"], capture_output=True, text=True)
    if head.returncode:
        return None
    # The package only: what else lies in the clone does not change results.
    changes = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "edgediff"], capture_output=True)
    return head.stdout.strip() + ("+changes" if changes.returncode else "")


@cache
def cpu_name() -> str:
    """Return the processor's model name, or the machine type where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def without(value: Any, keys: Collection[str]) -> Any:
    """Return plain data without what stands at these dotted keys."""
    if not isinstance(value, Mapping):
        return value
    return {
        name: without(inner, [key.removeprefix(f"{name}.") for key in keys if key.startswith(f"{name}.")])
        for name, inner in value.items()
        if name not in keys
    }


def _describes(
    value: Any, stage: str, config: Mapping[str, Any], inputs: Mapping[str, str], aside: Collection[str] = ()
) -> bool:
    wanted = {"stage": stage, "config": without(config, aside), "inputs": dict(inputs)}
    found = {"stage": value.get("stage"), "config": without(value.get("config"), aside), "inputs": value.get("inputs")}
    return found == json.loads(json.dumps(wanted, default=str))  # through JSON, because tuples come back as lists


def _sibling(path: Path) -> Path:
    """Return the name under which this process writes `path`, after removing what dead processes left there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    own = re.compile(rf"\.{re.escape(path.name)}\.(.+)\.(\d+)\.(tmp|old)")
    for left in list(path.parent.iterdir()):
        match = own.fullmatch(left.name)
        if match is None or not _abandoned(left, match[1], int(match[2])):
            continue
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)
    return path.with_name(f".{path.name}.{_machine()}.{os.getpid()}.tmp")


def _abandoned(left: Path, machine: str, pid: int) -> bool:
    """Tell whether nobody writes a temporary file any more; those of other machines are given a day."""
    if machine == _machine():
        return pid == os.getpid() or not psutil.pid_exists(pid)
    try:
        return time.time() - left.stat().st_mtime > DAY
    except FileNotFoundError:  # finished in this moment
        return False


@cache
def _machine() -> str:
    """Return this machine's or container's name as file names can have it: folders may be shared between several."""
    return re.sub(r"[^\w-]", "-", platform.node()) or "-"


def _publish(path: Path) -> None:
    """Flush a finished file, with the permissions of any new file: some writers make theirs private to the owner."""
    path.chmod((0o777 if path.is_dir() else 0o666) & ~_umask())
    _flush(path)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _flush(path: Path) -> None:
    """Have the system write a file or folder through to the disk, so that a rename never outlives its content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def naming_full_disk(path: Path) -> Iterator[None]:
    """Turn a full disk, met while writing `path` in the enclosed block, into a StageFailedError that names it."""
    try:
        yield
    except Exception as error:
        if not _is_full_disk(error):
            raise
        raise StageFailedError(
            f"no space left while writing: `{path}`",
            "free some space and run the same command again; everything finished before is kept",
        ) from error


def _is_full_disk(error: Exception) -> bool:
    """Tell whether a writer met a full disk; those of weights and arrays do not pass on the system's error number.

    safetensors raises an error of its own with the system's words, NumPy an OSError that only counts bytes.
    """
    codes = (errno.ENOSPC, errno.EDQUOT)
    return (
        (isinstance(error, OSError) and error.errno in codes)
        or any(os.strerror(code) in str(error) for code in codes)
        or re.fullmatch(r"\d+ requested and \d+ written", str(error)) is not None
    )
