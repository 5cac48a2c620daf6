"""One training at a time in a folder of states."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from edgediff.errors import BadInputError
from edgediff.training import processes

LOCK = "training.lock"


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep other trainings out of a folder while the enclosed block runs; the system lets go of what a kill leaves.

    Every process of the group calls it, and the main one holds the lock.

    Raises: BadInputError in all of them where another training holds it.
    """
    lock, free = FileLock(folder / LOCK), True
    if processes.is_main():
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            free = False
        except (OSError, NotImplementedError):  # a file system that knows no locks
            pass
    if not all(processes.of_all(free)):
        raise BadInputError(
            f"another training is writing here at this moment: `{folder}`",
            "wait until it ends, or stop it, and go on with `--resume`; or choose another run folder",
        )
    try:
        yield
    finally:
        lock.release()
