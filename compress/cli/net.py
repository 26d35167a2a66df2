"""Errors of commands: an expected error is one line, and every other exception is reported as a bug.

Expected errors are QCompressError, causes outside of the program such as a missing permission (`cause_of`), and too
little memory.
"""

import errno
import io
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import click

from compress.core.atomic import FULL, cause_of
from compress.core.errors import QCompressError
from compress.core.interrupt import exit_code, interrupt_line, sigterm_raises

PACKAGE = str(Path(__file__).parents[2])
CODE = (sys.prefix, sys.base_prefix, f"{PACKAGE}/compress", f"{PACKAGE}/calibration", "/proc/", "/sys/", "/etc/")
CODE_SUFFIXES = (".py", ".pyc", ".so")


class LastFile:
    """An audit hook that remembers the path that Python opened last, for the report of a bug."""

    path = ""

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(args[0], str) and not args[0].endswith(CODE_SUFFIXES):
            self.path = self.path if args[0].startswith(CODE) else args[0]


@cache
def last_file() -> LastFile:
    """The hook of this process, installed at the first call."""
    hook = LastFile()
    sys.addaudithook(hook)
    return hook


@contextmanager
def net(params: Mapping[str, Any]) -> Iterator[None]:
    """A context for a command: exceptions and interrupts become one line on stderr and an exit code.

    `params` are the parameters of `qcompress`. The key "debug" is looked up when an error occurs, because
    the command can set it while it runs.
    """
    last_file().path = ""
    escape_unprintable()
    try:
        with sigterm_raises():
            yield
    except (click.exceptions.Exit, click.Abort, click.UsageError):
        raise
    except KeyboardInterrupt as interrupt:
        end_progress()
        click.echo(interrupt_line(interrupt), err=True)
        raise click.exceptions.Exit(exit_code(interrupt)) from None
    except Exception as error:
        end_progress()
        debug = bool(params.get("debug"))
        if debug:
            click.echo("".join(traceback.format_exception(error)), err=True, nl=False)
        if isinstance(error, click.ClickException) or getattr(error, "errno", None) == errno.EPIPE:
            raise
        raise QCompressError(error_line(error, last_file().path, debug=debug)) from error
    finally:
        end_progress()


def escape_unprintable() -> None:
    """Print characters that the terminal's encoding lacks as backslash escapes.

    Such characters are half a surrogate pair, or a byte of a file name that is not text.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def end_progress() -> None:
    """Close the progress bars, so that the next output starts on a new line."""
    from compress.cli.console import report

    report.close()


def error_line(error: Exception, path: str = "", *, debug: bool) -> str:
    """The line for an exception other than QCompressError. `path` is the file that was opened last."""
    name, message = type(error).__name__, " ".join(str(error).split())
    if isinstance(error, MemoryError) or name == "OutOfMemoryError":
        return f"out of memory: {message or name}; use a smaller --batch-size or --seq-len, or close other programs"
    if isinstance(error, OSError) and (line := outside_cause(error, path)):
        return line
    cure = "please report it with the traceback above" if debug else "`qcompress --debug ...` shows the traceback"
    place = f"; the last file opened was {os.fspath(path)}" if path else ""
    return f"this is a bug in qcompress: {name}: {message or 'no message'}{place}; {cure}"


def outside_cause(error: OSError, path: str) -> str | None:
    """The line for an OSError whose cause is outside of the program. None for any other OSError."""
    if error.errno in FULL and error.filename is None:
        place = f"; the last file opened was {path}" if path else ""
        return f"the disk is full{place}; make room and run the same command again"
    return cause_of(error)
