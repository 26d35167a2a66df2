"""Atomic file writes, and one-line errors for a full disk."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from compress.core.errors import QCompressError


def write_atomic(path: Path, *pieces: Any) -> None:
    """Write `pieces` to a temporary file, and rename it to `path` when all bytes are on disk.

    If this raises OSError, an old file at `path` stays as it was.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def disk_errors(path: Path, kept: str = "finished parts are kept") -> Iterator[None]:
    """Context that turns the OSError of a full disk into a QCompressError with the free bytes and the cure.

    The message ends with `kept`, a text about the work that was saved.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free = shutil.disk_usage(path.parent).free
        raise QCompressError(
            f"{path}: the disk is full, {free:,} bytes free; make room and run the same command again, {kept}"
        ) from error
