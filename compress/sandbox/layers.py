"""The layers that contain a child process, in the order in which they are applied.

A layer that this machine lacks is reported.
"""

import os
import resource
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass

from compress.sandbox.audit import add_hook
from compress.sandbox.kernel import unshare
from compress.sandbox.landlock import confine_files
from compress.sandbox.seccomp import deny_calls

NEW_USER, NEW_NETWORK = 0x10000000, 0x40000000
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")


@dataclass(frozen=True)
class Limits:
    """Limits of one run: wall-clock and CPU seconds, bytes of address space, bytes of each file or output."""

    seconds: float = 15.0
    cpu_seconds: int = 5
    memory: int = 512 * 1024 * 1024
    output: int = 1024 * 1024


def limit_resources(limits: Limits) -> str:
    """Set the resource limits that every Unix has."""
    for name, value in (
        ("RLIMIT_CPU", limits.cpu_seconds),
        ("RLIMIT_AS", limits.memory),
        ("RLIMIT_FSIZE", limits.output),
        ("RLIMIT_CORE", 0),
        ("RLIMIT_NOFILE", 64),
    ):
        extra = 1 if name == "RLIMIT_CPU" else 0  # the hard limit kills code that ignores the signal of the soft one
        resource.setrlimit(getattr(resource, name), (value, value + extra))
    return f"{limits.cpu_seconds} s of CPU, {limits.memory / 2**20:.0f} MiB"


def deny_calls_or_processes() -> str:
    """Install the seccomp filter. If that fails, forbid new processes; that also forbids threads, but not for root."""
    try:
        return deny_calls()
    except (OSError, KeyError):
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
        raise


def new_namespace(flag: int) -> str:
    """Move this process into a new user or network namespace."""
    unshare(flag)
    return "separate"


def readable_folders() -> list[str]:
    """Folders of the standard library and of the shared libraries that it loads, with links resolved."""
    library = [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")]
    system = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo"]
    return [os.path.realpath(path) for path in [*library, *system, *DEVICES]]


def contain(folder: str, limits: Limits) -> dict[str, str]:
    """Drop all rights but computing and writing below `folder`. Returns each layer's state, or "none: reason"."""
    readable, writable = readable_folders(), [os.path.realpath(folder), *DEVICES]
    layers: dict[str, Callable[[], str]] = {
        "user namespace": lambda: new_namespace(NEW_USER),
        "network namespace": lambda: new_namespace(NEW_NETWORK),
        "resource limits": lambda: limit_resources(limits),
        "landlock": lambda: confine_files(readable, writable),
        "seccomp": deny_calls_or_processes,
        "audit hook": lambda: add_hook(readable, writable),
    }
    return {name: attempt(layer) for name, layer in layers.items()}


def attempt(layer: Callable[[], str]) -> str:
    """Apply a layer; returns its state, or "none: reason" if it cannot be applied."""
    try:
        return layer()
    except (OSError, KeyError, AttributeError, ValueError) as error:
        return f"none: {error}"


def unload_tools() -> None:
    """Remove the sandbox's modules from the interpreter, so that the audit hook sees an attempt to import them."""
    for name in [name for name in sys.modules if name.split(".")[0] in ("ctypes", "_ctypes", "compress", "resource")]:
        del sys.modules[name]
