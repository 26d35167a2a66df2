"""The work folder of an unfinished job: a lock, an atomic journal, and a check that settings have not changed."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from compress.core.atomic import write_atomic
from compress.core.changes import changed_keys
from compress.core.errors import QCompressError

Row = dict[str, Any]
LOCK = "lock"


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Context that only one process can hold. The kernel releases it if the process is killed."""
    with (folder / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise QCompressError(f"{folder}: another process is using it; wait for it or stop it") from error
        yield


def write_journal(path: Path, value: Row) -> None:
    """Replace the journal atomically."""
    write_atomic(path, json.dumps(value, ensure_ascii=False).encode())
    sync_folder(path.parent)


def check_same_settings(folder: Path, old: Row, new: Row) -> None:
    """QCompressError with every changed setting if a job would continue with other settings than it started with."""
    changed = changed_keys(old, new)
    if changed:
        changes = ", ".join(f"{key} {old.get(key)} (now {new.get(key)})" for key in changed)
        raise QCompressError(
            f"{folder}: was started with {changes}; use the old settings, or start again with --restart"
        )


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def clear_work(folder: Path, journal: str) -> None:
    """Delete a job's work files, and the `journal` last, so that an interrupted deletion can be recognized."""
    for path in folder.glob("*"):
        if path.name not in (journal, LOCK):
            path.unlink()
    (folder / journal).unlink(missing_ok=True)


@contextmanager
def lock_output(out: Path) -> Iterator[None]:
    """Context of the one process that may write `out`, for jobs without a work folder. QCompressError for a second one.

    The lock is a hidden file beside `out`, removed at the end. If the process is killed, the file stays, unlocked: it
    marks an unfinished checkpoint as one that may be replaced.
    """
    path = out.with_name(f".{out.name}.lock")
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    ours = path.exists()
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = path.exists() and os.fstat(file.fileno()).st_ino == path.stat().st_ino  # else removed by its owner
        except BlockingIOError:
            free = False
        if not free:
            raise QCompressError(f"{out}: another process is writing it; wait for it, or give another --out")
        try:
            partial = out.with_name(f".{out.name}.partial")
            if partial.exists() and not ours:
                raise QCompressError(
                    f"{partial}: belongs to another job; finish that job, remove the folder, or give another --out"
                )
            yield
        finally:
            path.unlink(missing_ok=True)
