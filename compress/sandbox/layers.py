"""The layers that contain a process, in the order in which they are applied. If a layer is missing, nothing is run.

Only the namespaces are optional: seccomp forbids the same actions, and many containers do not offer namespaces.
"""

import os
import resource
import signal
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from compress.sandbox.kernel import PR_SET_PDEATHSIG, prctl, unshare
from compress.sandbox.landlock import confine_files
from compress.sandbox.seccomp import allow_calls

NEW_NAMESPACES = 0x10000000 | 0x40000000 | 0x08000000 | 0x04000000  # user, network, IPC, host name
ENDING = "ends with its parent"
SYSTEM = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo", "/dev/null", "/dev/zero", "/dev/urandom")


@dataclass(frozen=True)
class Limits:
    """Limits of one run: clock and CPU seconds, bytes of address space and of the result, threads, open files.

    `processes` counts the process itself and its threads. It must be 1 for root, because Linux does not limit the
    threads of root. No file can be created.
    """

    seconds: float = 10.0
    cpu_seconds: int = 5
    memory: int = 512 * 1024 * 1024
    output: int = 1024 * 1024
    processes: int = 1
    files: int = 64


def contain(limits: Limits, parent: int, packages: Sequence[str] = ()) -> dict[str, str]:
    """Drop all rights except computing and reading Python's library and `packages`. Returns each layer's state.

    Raises OSError, which names the layer, if this machine lacks a layer.
    """
    if limits.processes > 1 and os.getuid() == 0:
        raise OSError("Linux does not limit the threads of root; run as another user, or with one process")
    layers: dict[str, Callable[[], str]] = {
        "one thread": count_threads,
        "namespaces": separate,
        ENDING: lambda: end_with(parent),
        "resource limits": lambda: limit_resources(limits),
        "landlock": lambda: confine_files([*library_folders(), *packages]),
        "seccomp": lambda: allow_calls(threads=limits.processes > 1),
    }
    return {name: apply(name, layer) for name, layer in layers.items()}


def apply(name: str, layer: Callable[[], str]) -> str:
    """Apply one layer, and return its state. Raises OSError, which names the layer, if that fails."""
    try:
        return layer()
    except (OSError, ValueError) as error:
        raise OSError(f"{name}: {error}") from error


def count_threads() -> str:
    """Raises OSError if imports have started threads, because the next layers restrict only the calling thread."""
    count = sum(1 for _ in Path("/proc/self/task").iterdir())
    if count > 1:
        raise OSError(f"the imports started {count - 1} threads")
    return "yes"


def separate() -> str:
    """Move this process into new namespaces, in which it has no network and no rights of a user."""
    try:
        unshare(NEW_NAMESPACES)
    except OSError as error:
        return f"none: {error}"
    return "separate"


def end_with(parent: int) -> str:
    """Make the kernel kill this process when `parent` ends. Raises OSError if `parent` has already ended."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise OSError("the parent has ended")
    return "yes"


def limit_resources(limits: Limits) -> str:
    """Set the kernel's limits for this process."""
    for name, value in (
        (resource.RLIMIT_CPU, limits.cpu_seconds),
        (resource.RLIMIT_AS, limits.memory),
        (resource.RLIMIT_NOFILE, limits.files),
        (resource.RLIMIT_NPROC, limits.processes),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
    ):
        extra = 1 if name == resource.RLIMIT_CPU else 0  # the hard limit kills code that ignores the soft one's signal
        resource.setrlimit(name, (value, value + extra))
    return f"{limits.cpu_seconds} s of CPU, {limits.memory / 2**20:.0f} MiB"


def library_folders() -> list[str]:
    """The folders of the standard library, and of the shared libraries that it loads. Links are resolved."""
    library = [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")]
    return [os.path.realpath(path) for path in [*library, *SYSTEM]]
