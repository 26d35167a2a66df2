"""Call the C library through ctypes, so that a process gives up rights or ends with its parent."""

import ctypes
import os

PR_SET_PDEATHSIG = 1  # with a signal: the kernel sends it to this process when the parent process ends

_library = ctypes.CDLL(None, use_errno=True)


def prctl(option: int, first: int = 0, second: object = 0) -> None:
    """Call prctl(2). Raises OSError, with errno, if the kernel refuses."""
    _checked(_library.prctl(option, ctypes.c_ulong(first), second, 0, 0))


def syscall(number: int, *arguments: object) -> int:
    """Make a system call, by its number, and return its result. Raises OSError, with errno, if the kernel refuses."""
    return _checked(_library.syscall(ctypes.c_long(number), *arguments))


def unshare(flags: int) -> None:
    """Call unshare(2). Raises OSError, with errno, if the kernel refuses."""
    _checked(_library.unshare(ctypes.c_int(flags)))


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
