"""Landlock: restrict this process to reading files below some folders. The restriction cannot be removed.

https://docs.kernel.org/userspace-api/landlock.html. Older kernels restrict fewer actions; seccomp refuses the rest.
"""

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path

from compress.sandbox.kernel import prctl, syscall

CREATE, ADD_RULE, RESTRICT = 444, 445, 446
VERSION_FLAG, PATH_BENEATH, PR_SET_NO_NEW_PRIVS = 1, 1, 38
READ_FILE, READ_DIR = 0x4, 0x8
FILE_RIGHTS = {1: 0x1FFF, 2: 0x3FFF, 3: 0x7FFF, 4: 0x7FFF, 5: 0xFFFF}  # all file rights of each Landlock version
TCP, SCOPES = 0x3, 0x3  # bind and connect (version 4); abstract sockets and signals (version 6)


class Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scopes", ctypes.c_uint64))


class PathRule(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("folder", ctypes.c_int32))


def version() -> int:
    """Landlock's version in this kernel. Raises OSError if the kernel has no Landlock."""
    return syscall(CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(VERSION_FLAG))


def confine_files(readable: Sequence[str]) -> str:
    """Allow this process only to read, and only below the folders `readable`. Raises OSError without Landlock."""
    number = version()
    supported = FILE_RIGHTS[min(number, max(FILE_RIGHTS))]
    rules = Ruleset(supported, TCP if number >= 4 else 0, SCOPES if number >= 6 else 0)
    size = 8 if number < 4 else 16 if number < 6 else 24
    ruleset = syscall(CREATE, ctypes.byref(rules), ctypes.c_size_t(size), ctypes.c_uint32(0))
    for path in filter(os.path.exists, readable):
        _allow(ruleset, path)
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    syscall(RESTRICT, ctypes.c_int(ruleset), ctypes.c_uint32(0))
    os.close(ruleset)
    return f"version {number}"


def _allow(ruleset: int, path: str) -> None:
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    rule = PathRule(READ_FILE | READ_DIR if Path(path).is_dir() else READ_FILE, descriptor)
    syscall(ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(PATH_BENEATH), ctypes.byref(rule), ctypes.c_uint32(0))
    os.close(descriptor)
