"""The log of a backend or of its installation: all that it prints, up to a limit, and its last error line."""

import re
from pathlib import Path

from compress.core.atomic import file_errors
from compress.core.file_kind import beginning_kind

BEGINNING = "qcompress backend "
LOG = beginning_kind(BEGINNING.encode())
TAIL_BYTES = 200_000
LONGEST = 300  # characters of an error line
ERROR = re.compile(
    r"^(?:\S*\s*)?(?:[\w.]*(?:Error|Exception|Interrupt|Exit|Failure)\b.*|ERROR: .*|error: .*)$", re.MULTILINE
)


def log_path(out: Path) -> Path:
    """The log of the backend that writes the checkpoint `out`."""
    return out.with_name(f"{out.name}.backend.log")


def begin_log(log: Path, name: str) -> None:
    """Begin a new log. Raises QCompressError if another program's file is there."""
    LOG.check(log)
    with file_errors(log):
        log.write_text(f"{BEGINNING}{name}\n")


def last_error(log: Path) -> str:
    """The last line of a log that looks like an error, or else its last line."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL_BYTES))
        text = file.read().decode("utf-8", "replace")
    errors = ERROR.findall(text)
    lines = [line for line in text.splitlines()[1:] if line.strip()]
    line = errors[-1] if errors else lines[-1] if lines else "it printed nothing"
    return " ".join(line.split())[:LONGEST]
