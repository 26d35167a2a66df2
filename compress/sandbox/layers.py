"""What contains a child, one row a layer, applied in this order.

A layer that this machine lacks is told, never hidden.
"""

import os
import resource
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass

from compress.sandbox.audit import watch_events
from compress.sandbox.kernel import unshare
from compress.sandbox.landlock import confine_files
from compress.sandbox.seccomp import deny_calls

NEW_USER, NEW_NETWORK = 0x10000000, 0x40000000
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")


@dataclass(frozen=True)
class Limits:
    """Of one run: seconds by the clock and of CPU, bytes of address space and of any file or output."""

    seconds: float = 15.0
    cpu_seconds: int = 5
    memory: int = 512 * 1024 * 1024
    output: int = 1024 * 1024


def limit_resources(limits: Limits) -> str:
    """The limits that every Unix knows."""
    for name, value in (
        ("RLIMIT_CPU", limits.cpu_seconds),
        ("RLIMIT_AS", limits.memory),
        ("RLIMIT_FSIZE", limits.output),
        ("RLIMIT_CORE", 0),
        ("RLIMIT_NOFILE", 64),
    ):
        extra = 1 if name == "RLIMIT_CPU" else 0  # the hard limit kills what ignores the soft one's signal
        resource.setrlimit(getattr(resource, name), (value, value + extra))
    return f"{limits.cpu_seconds} s of CPU, {limits.memory / 2**20:.0f} MiB"


def deny_calls_or_processes() -> str:
    """The filter; without it, no new process at least. That limit stops threads too, and does not bind root."""
    try:
        return deny_calls()
    except (OSError, KeyError):
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
        raise


def new_namespace(flag: int) -> str:
    unshare(flag)
    return "own"


def readable_folders() -> list[str]:
    """Where the standard library and the shared libraries that it loads lie; links followed."""
    library = [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")]
    system = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo"]
    return [os.path.realpath(path) for path in [*library, *system, *DEVICES]]


def contain(folder: str, limits: Limits) -> dict[str, str]:
    """Give up every right but computing, and writing below `folder`: what each layer says, or "none: why"."""
    readable, writable = readable_folders(), [os.path.realpath(folder), *DEVICES]
    layers: dict[str, Callable[[], str]] = {
        "user namespace": lambda: new_namespace(NEW_USER),
        "network namespace": lambda: new_namespace(NEW_NETWORK),
        "resource limits": lambda: limit_resources(limits),
        "landlock": lambda: confine_files(readable, writable),
        "seccomp": deny_calls_or_processes,
        "audit hook": lambda: watch_events(readable, writable),
    }
    return {name: attempt(layer) for name, layer in layers.items()}


def attempt(layer: Callable[[], str]) -> str:
    try:
        return layer()
    except (OSError, KeyError, AttributeError, ValueError) as error:
        return f"none: {error}"


def forget_tools() -> None:
    """Take from the interpreter what contained it, so that importing it again meets the audit hook."""
    for name in [name for name in sys.modules if name.split(".")[0] in ("ctypes", "_ctypes", "compress", "resource")]:
        del sys.modules[name]
