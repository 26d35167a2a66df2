"""Python's own audit events (PEP 578): the layer that every system has, and that names what was refused.

It can be escaped from inside the interpreter, so it is never the only layer where the kernel offers one.
"""

import os
import sys
from collections.abc import Sequence
from typing import Any

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
REFUSED = (  # an event's name begins with one of these
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
CHANGES = ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate")  # first argument: a path
REFUSED_MODULES = ("ctypes", "_ctypes")


def watch_events(readable: Sequence[str], writable: Sequence[str]) -> str:
    """Refuse, with PermissionError, all of the above, and files outside the given folders. Cannot be taken off."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith(REFUSED) or (event == "import" and arguments[0] in REFUSED_MODULES):
            raise PermissionError(f"{event} {arguments[0] if event == 'import' else ''}".strip())
        if event == "open" and isinstance(arguments[0], str | bytes):
            writes = bool((arguments[2] or 0) & WRITING)
            refuse_outside(event, arguments[0], writable if writes else [*readable, *writable])
        elif event in CHANGES:
            refuse_outside(event, arguments[0], writable)

    sys.addaudithook(hook)
    return "on"


def refuse_outside(event: str, path: str | bytes, folders: Sequence[str]) -> None:
    """PermissionError unless `path`, links followed, is one of `folders` or lies below one."""
    real = os.path.realpath(os.fsdecode(path))
    if not any(real == folder or real.startswith(folder.rstrip("/") + "/") for folder in folders):
        raise PermissionError(f"{event} {real}")
