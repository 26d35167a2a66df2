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
    """Write the pieces to `path`, replacing it only when all bytes are on disk. On OSError the old file stays."""
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
    """On a full disk, raise QCompressError with the free bytes, what to do, and the text `kept`: what was saved."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free = shutil.disk_usage(path.parent).free
        raise QCompressError(
            f"{path}: the disk is full, {free:,} bytes free; make room and run the same command again, {kept}"
        ) from error
