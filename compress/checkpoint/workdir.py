"""The work folder of an unfinished job: one process at a time, a journal true at every moment, no other settings."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from compress.core.atomic import write_whole
from compress.core.errors import QCompressError

Row = dict[str, Any]
LOCK = "lock"


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Held by one process at a time, and given back by the kernel when that is killed."""
    with (folder / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise QCompressError(f"{folder}: another process is at work on it; wait for it or stop it") from error
        yield


def write_journal(path: Path, value: Row) -> None:
    """The old journal or this new one, never half of it."""
    write_whole(path, json.dumps(value, ensure_ascii=False).encode())
    sync_folder(path.parent)


def refuse_changes(folder: Path, old: Row, new: Row) -> None:
    """QCompressError when a job would be finished with other settings than it was begun with."""
    changed = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    if changed:
        told = ", ".join(f"{key} {old.get(key)} (now {new.get(key)})" for key in changed)
        raise QCompressError(
            f"{folder}: was started with {told}; finish it with the old settings, or begin anew with --restart"
        )


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def clear_work(folder: Path, journal: str) -> None:
    """Remove what a job has left in its work folder, the `journal` last: so that it is known whose it is."""
    for path in folder.glob("*"):
        if path.name not in (journal, LOCK):
            path.unlink()
    (folder / journal).unlink(missing_ok=True)
