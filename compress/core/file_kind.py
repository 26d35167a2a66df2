"""Kinds of files that qcompress writes, recognized by their content.

Every write that can replace a file, and every removal, names the kind. So files of other programs are never lost.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.core.atomic import file_errors
from compress.core.errors import QCompressError

MAX_BYTES = 64_000_000  # of a JSON file, or of the first line of a JSON-lines file


@dataclass(frozen=True)
class FileKind:
    """A kind of file. `recognize` returns whether an existing file is of this kind; `option` sets the file's path."""

    recognize: Callable[[Path], bool]
    option: str = "--out"

    def matches(self, path: Path) -> bool:
        """Whether `path` is missing, or is a file of this kind.

        An empty file counts as any kind, because a run that was killed can leave one.
        """
        with file_errors(path):
            return not path.exists() or (path.is_file() and (path.stat().st_size == 0 or self.recognize(path)))

    def check(self, path: Path) -> None:
        """Raises QCompressError unless `path` `matches`."""
        if self.matches(path):
            return
        raise QCompressError(
            f"{path}: exists, and qcompress did not write it; move it away, or use another {self.option}"
        )

    def remove(self, path: Path) -> None:
        """Remove the file, if it exists. Raises QCompressError if `check` does."""
        self.check(path)
        path.unlink(missing_ok=True)


def json_kind(*keys: str, option: str = "--out") -> FileKind:
    """JSON files of an object, or of a list of objects, whose first object has all of these keys."""
    return FileKind(lambda path: first_object(path).keys() >= set(keys), option)


def lines_kind(*keys: str) -> FileKind:
    """JSON-lines files whose first line has all of these keys. The line begins with the first key.

    A killed run or a full disk can leave an incomplete line. An incomplete first line is recognized by its beginning.
    """
    beginning = f'{{"{keys[0]}": '.encode()

    def recognize(path: Path) -> bool:
        with path.open("rb") as file:
            line = file.readline(MAX_BYTES)
        if line.endswith(b"\n"):
            return parse_object(line).keys() >= set(keys)
        return line[: len(beginning)] == beginning[: len(line)]

    return FileKind(recognize)


def marked_kind(marker: bytes, option: str) -> FileKind:
    """Files that contain `marker`."""
    return FileKind(lambda path: marker in path.read_bytes(), option)


def beginning_kind(beginning: bytes, option: str = "--out") -> FileKind:
    """Files that begin with these bytes, also those that a killed run has cut short."""

    def recognize(path: Path) -> bool:
        with path.open("rb") as file:
            head = file.read(len(beginning))
        return head == beginning[: len(head)]

    return FileKind(recognize, option)


def first_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file, or the first one in its list; {} if the file has none."""
    with path.open("rb") as file:
        return parse_object(file.read(MAX_BYTES))


def parse_object(raw: bytes) -> dict[str, Any]:
    """The object in a JSON text, or the first one in its list; {} if the text has none."""
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return {}
    first = value[0] if isinstance(value, list) and value else value
    return first if isinstance(first, dict) else {}


WORK_FILE = FileKind(lambda path: True)
"""Any file in a folder that carries this program's marker."""
REPORT = marked_kind(b'<script type="application/json" id="rows">', option="--html")
"""The HTML report: every one embeds its rows."""
LOG_BEGINNING = "qcompress serve "
ENGINE_LOG = beginning_kind(LOG_BEGINNING.encode(), option="--logs")
"""The output of a server that `qcompress serve` starts, below a line with the model's name."""
