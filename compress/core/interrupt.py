"""Ctrl-C and SIGTERM both raise KeyboardInterrupt, so that jobs clean up. A note of the exception names kept work."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

RESUME = "run the same command again to continue"


class Terminated(KeyboardInterrupt):
    """Raised when the process receives SIGTERM."""


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """Context in which SIGTERM raises Terminated. It changes nothing outside of the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, raise_terminated)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def raise_terminated(number: int, frame: Any) -> None:
    raise Terminated


@contextmanager
def on_interrupt(describe: Callable[[], str | None]) -> Iterator[None]:
    """Context of a job that adds `describe()`, a line about kept work, to an interrupt.

    Only the innermost context adds its line. `describe()` returns None if the job keeps nothing.
    """
    try:
        yield
    except KeyboardInterrupt as interrupt:
        line = None if getattr(interrupt, "__notes__", ()) else describe()
        if line is not None:
            interrupt.add_note(line)
        raise


def interrupt_line(interrupt: KeyboardInterrupt) -> str:
    """One line about an interrupt: its kind, and the work that is kept."""
    kept = (getattr(interrupt, "__notes__", ()) or ("nothing was kept",))[0]
    return f"{'terminated' if isinstance(interrupt, Terminated) else 'interrupted'}: {kept}"


def exit_code(interrupt: KeyboardInterrupt) -> int:
    """The exit code of an interrupted command: 128 plus the number of the signal, as in shells."""
    return 128 + (signal.SIGTERM if isinstance(interrupt, Terminated) else signal.SIGINT)
