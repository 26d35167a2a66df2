"""Limits on memory and time for foreign code that runs in this process, such as a chat template."""

import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

MEMORY = 256_000_000  # bytes
SECONDS = 10.0
STATM = Path("/proc/self/statm")


@contextmanager
def bounded(memory: int = MEMORY, seconds: float = SECONDS) -> Iterator[None]:
    """Context whose body may allocate `memory` more bytes and run for `seconds`.

    Raises MemoryError or TimeoutError if the body exceeds a limit. Memory is limited on Linux only, time in the main
    thread only.
    """
    with limited_memory(memory), limited_time(seconds):
        yield


@contextmanager
def limited_memory(memory: int) -> Iterator[None]:
    """Context in which the process can map `memory` more bytes than before. No limit without /proc."""
    if not STATM.exists():
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = int(STATM.read_text().split()[0]) * resource.getpagesize() + memory
    lower = limit if soft == resource.RLIM_INFINITY else min(limit, soft)
    resource.setrlimit(resource.RLIMIT_AS, (lower, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextmanager
def limited_time(seconds: float, *, cpu: bool = False) -> Iterator[None]:
    """Context that raises TimeoutError in its body after `seconds`. With `cpu`, only CPU time is counted.

    Outside the main thread there is no limit.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"it ran for more than {seconds:g} seconds")

    timer, number = (signal.ITIMER_VIRTUAL, signal.SIGVTALRM) if cpu else (signal.ITIMER_REAL, signal.SIGALRM)
    before = signal.signal(number, stop)
    signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        signal.setitimer(timer, 0)
        signal.signal(number, before)
