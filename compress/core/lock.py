"""One run per output: a lock file beside it, `.OUT.lock`. The kernel releases the lock when the process ends."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from compress.core.atomic import file_errors
from compress.core.errors import QCompressError

NUMBER_BYTES = 20  # of a process number, written into the file for the error of the second run


@contextmanager
def output_lock(out: Path, *, rank: int = 0, ranks: int = 1) -> Iterator[None]:
    """Context that holds the lock of `out`. Only one run at a time can hold it.

    All `ranks` of one run share this lock, and each rank also has its own lock. Raises QCompressError, with the process
    number of the other run, if another run holds the lock.
    """
    out = out.absolute()
    if not out.name:
        raise QCompressError(f"{out}: is the root folder; give a new folder as --out")
    with file_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    with held(lock_file(out), out, shared=ranks > 1):
        if ranks == 1:
            yield
            return
        with held(lock_file(out, rank), out):
            yield


def lock_file(out: Path, rank: int | None = None) -> Path:
    """The path of an output's lock file. With `rank`, the path of that rank's own lock file."""
    return out.with_name(f".{out.name}.lock" if rank is None else f".{out.name}.{rank}.lock")


@contextmanager
def held(file: Path, out: Path, *, shared: bool = False) -> Iterator[None]:
    """Context that holds the lock on a lock file. The file is removed when the context closes."""
    descriptor = acquire(file, out, shared=shared)
    try:
        yield
    finally:
        release(descriptor, file)


def acquire(file: Path, out: Path, *, shared: bool) -> int:
    """Open and lock the file. If its previous holder has removed it meanwhile, create it again."""
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    while True:
        with file_errors(file):
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
            try:
                fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            except OSError as error:
                holder = read_number(descriptor)
                os.close(descriptor)
                if not isinstance(error, BlockingIOError):
                    raise
                raise QCompressError(in_use(out, holder)) from error
        if is_current(descriptor, file):
            write_number(descriptor)
            return descriptor
        os.close(descriptor)


def release(descriptor: int, file: Path) -> None:
    """Remove the file, unless another rank still shares it, and release the lock."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if is_current(descriptor, file) and read_number(descriptor) is not None:
            file.unlink()
    except OSError:
        pass  # another rank holds it, or the folder is gone: the file stays, and a file without a holder locks nothing
    finally:
        os.close(descriptor)


def is_current(descriptor: int, file: Path) -> bool:
    """True if the open file is still the one at this path."""
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False


def read_number(descriptor: int) -> str | None:
    """The process number in a lock file. "" if the file is empty, None if another program wrote it."""
    text = os.pread(descriptor, NUMBER_BYTES, 0).decode(errors="replace").strip()
    return text if not text or text.isdecimal() else None


def write_number(descriptor: int) -> None:
    """Write this process's number into the lock file. If another program wrote the file, leave it as it is."""
    if read_number(descriptor) is not None:
        os.pwrite(descriptor, f"{os.getpid():<{NUMBER_BYTES}}".encode(), 0)


def in_use(out: Path, holder: str | None) -> str:
    process = f"another process ({holder})" if holder else "another process"
    return f"{out}: {process} writes there now; wait for it, stop it, or use another --out"
