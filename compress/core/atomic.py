"""Files that are there whole or not at all, and a full disk told in one line."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from compress.core.errors import QCompressError


def write_whole(path: Path, *pieces: Any) -> None:
    """A file of these bytes under its name only when it is on the disk. OSError leaves what was there before."""
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
def disk_errors(path: Path, kept: str = "what is whole is kept") -> Iterator[None]:
    """A full disk as one line: QCompressError with the bytes that are free, the cure, and what is `kept`."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free = shutil.disk_usage(path.parent).free
        raise QCompressError(
            f"{path}: the disk is full, {free:,} bytes free; make room and give the same command again, {kept}"
        ) from error
