"""Atomic file writes, and one-line messages for errors of the operating system."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.core.errors import QCompressError
from compress.core.units import format_bytes

if TYPE_CHECKING:
    from compress.core.file_kind import FileKind

FULL = (errno.ENOSPC, errno.EDQUOT)
CAUSES = {  # errno -> what is wrong; what to do. Nothing that the program itself could cause
    errno.EACCES: "permission denied; change its permissions or use another path",
    errno.EPERM: "the system does not permit this; change its permissions or use another path",
    errno.EROFS: "the file system is read-only; use a path on another one",
    errno.EIO: "the disk reports an error; check the disk or use another one",
    errno.EFBIG: "the file system cannot hold such a large file; use a path on another one",
    errno.EMFILE: "too many open files; raise the limit with `ulimit -n`",
    errno.ENFILE: "the system has too many open files; close other programs",
    errno.ENAMETOOLONG: "the name is too long; use a shorter one",
    errno.ELOOP: "the symbolic links form a loop; give the path of a real file",
    errno.ENOTDIR: "a part of the path is a file, not a folder; correct the path",
    errno.ENXIO: "the device does not answer; give a regular file",
    errno.EBUSY: "another program or a mount uses it; use another path",
    errno.EXDEV: "it is on another file system than its folder; use another path",
    errno.ENOLCK: "the file system has no file locks; use a path on another one",
    errno.EOPNOTSUPP: "the file system does not support this; use a path on another one",
    errno.ESTALE: "the network file system lost the file; run the command again",
    errno.ETXTBSY: "a running program is stored in it; use another path",
}
MISSING = {  # only where the path comes from the user: elsewhere these are bugs
    errno.ENOENT: "no such file or folder; check the path",
    errno.EISDIR: "is a folder, not a file; give a file",
    errno.EEXIST: "exists already; use another path",
    errno.ENOTEMPTY: "the folder is not empty; use another path",
}


def write_atomic(path: Path, *pieces: Any, kind: "FileKind") -> None:
    """Write `pieces` to a temporary file, and rename it to `path` when all bytes are on disk.

    Raises QCompressError, with the path, if there is a file of another kind, if the disk is full, or if the system
    refuses. Then an old file stays as it was.
    """
    kind.check(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with file_errors(path):
        try:
            with partial.open("wb") as file:
                for piece in pieces:
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            partial.rename(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def check_no_link(path: Path) -> None:
    """Raises QCompressError if the path of a temporary file or folder is a link, which would be followed."""
    if path.is_symlink():
        raise QCompressError(f"{path}: is a link in the place of a temporary file; remove it, or choose another --out")


def check_parent(path: Path) -> None:
    """Raises QCompressError if `path` lies below a file, where nothing can be written."""
    parent = next((parent for parent in path.absolute().parents if parent.exists()), None)
    if parent is not None and not parent.is_dir():
        raise QCompressError(f"{path}: {parent} is a file, not a folder; give another --out")


@contextmanager
def file_errors(path: Path, kept: str = "finished parts are kept") -> Iterator[None]:
    """Context that turns an OSError about `path` into a QCompressError with the path, the cause and the cure.

    `kept` is a text about the work that stays when the disk is full.
    """
    try:
        yield
    except OSError as error:
        line = cause_of(error, path, kept)
        if line is None:
            raise
        raise QCompressError(line) from error


def cause_of(error: OSError, path: Path | None = None, kept: str = "") -> str | None:
    """One line with path, cause and cure of an error. None for an unexpected error, which is a bug.

    Without `path`, the path is taken from the error, and a missing file is unexpected.
    """
    causes = CAUSES if path is None else CAUSES | MISSING
    if path is None and isinstance(error.filename, str | bytes):
        path = Path(os.fsdecode(error.filename))
    if path is None or error.errno is None:
        return None
    if error.errno in FULL:
        return full_disk(path, kept)
    return f"{path}: {causes[error.errno]}" if error.errno in causes else None


def free_space(path: Path) -> tuple[Path, int]:
    """The folder at or above `path` that exists, and the free bytes of its disk."""
    folder = next(one for one in (path.absolute(), *path.absolute().parents) if one.exists())
    return folder, shutil.disk_usage(folder).free


def full_disk(path: Path, kept: str = "") -> str:
    """One line for a full disk, with the free bytes."""
    _, free = free_space(path.parent)
    cure = f"make room and run the same command again{', ' if kept else ''}{kept}"
    return f"{path}: the disk is full, {format_bytes(free, short=False)} free; {cure}"
