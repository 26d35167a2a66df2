"""Answers on disk, one line per item, written at once: an interrupted run resumes with the next item.

The first line is a header: checkpoint digest, suite digest, generation settings. A log with another header is rejected,
and the error names the difference.
"""

import json
from pathlib import Path
from typing import Any

from compress.core.atomic import file_errors
from compress.core.errors import QCompressError

Header = dict[str, Any]


class AnswerLog:
    """The stored answers by item id; `add` stores one more."""

    def __init__(self, path: Path, header: Header, *, restart: bool = False) -> None:
        """Open or create the file; `restart` discards its answers. QCompressError if its header differs."""
        self.path = path
        self.answers: dict[str, list[str]] = {}
        if restart:
            path.unlink(missing_ok=True)
        if path.exists():
            self._read(header)
        else:
            with file_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
            self._append(header)

    def add(self, item: str, answers: list[str]) -> None:
        self._append({"id": item, "answers": answers})
        self.answers[item] = answers

    def _append(self, row: dict[str, Any]) -> None:
        with file_errors(self.path, "stored answers are kept"), self.path.open("ab") as file:
            file.write(json_line(row))

    def _read(self, header: Header) -> None:
        """Read all complete lines. An interruption can leave half a last line; it is removed."""
        text = self.path.read_bytes().decode("utf-8", errors="ignore")
        complete = text[: text.rfind("\n") + 1]
        if complete != text:
            self.path.write_bytes(complete.encode())
        lines = [self._parse(line, number) for number, line in enumerate(complete.split("\n")[:-1], 1)] or [{}]
        self._check_header(header, lines[0])
        self.answers = {row["id"]: row["answers"] for row in lines[1:] if {"id", "answers"} <= row.keys()}

    def _parse(self, line: str, number: int) -> dict[str, Any]:
        try:
            return dict(json.loads(line))
        except (ValueError, TypeError, RecursionError):
            raise QCompressError(f"{self.path}: line {number}: not a JSON object; use --restart") from None

    def _check_header(self, header: Header, stored: Header) -> None:
        old = flatten(stored)
        for key, value in flatten(header).items():
            if old.get(key) != value:
                raise QCompressError(
                    f"{self.path}: holds answers with {key} {old.get(key)}, not {value}; "
                    "use --restart to discard them, or another --out"
                )


def json_line(row: dict[str, Any]) -> bytes:
    """The row as one line of JSON. A lone surrogate, which UTF-8 cannot hold, is written as its JSON escape."""
    return (json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8", errors="backslashreplace")


def flatten(header: Header) -> Header:
    """The header with its settings as separate keys, so that an error names the one that differs."""
    return {key: value for key, value in header.items() if key != "settings"} | dict(header.get("settings") or {})
