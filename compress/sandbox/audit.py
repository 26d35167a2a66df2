"""Python's audit events (PEP 578): the layer that works on every system and names the refused action.

Code can escape it from inside the interpreter, so the kernel's layers are used as well where they exist.
"""

import os
import sys
from collections.abc import Sequence
from typing import Any

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
REFUSED = (  # prefixes of event names
    "socket.",
    "subprocess.",
    "ctypes.",
    "pty.",
    "os.system",
    "os.exec",
    "os.fork",
    "os.posix_spawn",
    "os.spawn",
    "os.kill",
    "signal.pthread_kill",
    "resource.",
    "os.chmod",
    "os.chown",
    "os.link",
    "os.symlink",
    "os.setxattr",
    "os.utime",
)
CHANGES = ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate")  # their first argument is a path
REFUSED_MODULES = ("ctypes", "_ctypes")


def add_hook(readable: Sequence[str], writable: Sequence[str]) -> str:
    """Raise PermissionError for REFUSED events and for files outside these folders. The hook cannot be removed."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith(REFUSED) or (event == "import" and arguments[0] in REFUSED_MODULES):
            raise PermissionError(f"{event} {arguments[0] if event == 'import' else ''}".strip())
        if event == "open" and isinstance(arguments[0], str | bytes):
            writes = bool((arguments[2] or 0) & WRITING)
            check_inside(event, arguments[0], writable if writes else [*readable, *writable])
        elif event in CHANGES:
            check_inside(event, arguments[0], writable)

    sys.addaudithook(hook)
    return "on"


def check_inside(event: str, path: str | bytes, folders: Sequence[str]) -> None:
    """Raise PermissionError unless `path`, with links resolved, is one of `folders` or below one."""
    real = os.path.realpath(os.fsdecode(path))
    if not any(real == folder or real.startswith(folder.rstrip("/") + "/") for folder in folders):
        raise PermissionError(f"{event} {real}")
