"""The answers of a checkpoint on disk, one line per item. An interrupted run resumes with the next item.

The first line is a header with the digests of checkpoint and suite, and with all settings that can change an answer.
If the header differs from that of the present run, an error names the difference.
"""

import json
from pathlib import Path
from typing import Any

from compress.core.atomic import file_errors
from compress.core.errors import QCompressError
from compress.core.file_kind import lines_kind

Header = dict[str, Any]
ANSWERS = lines_kind("checkpoint", "suite", "settings")
CHANGES = {"checkpoint": "the checkpoint's files have changed", "suite": "the tasks have changed"}  # values are digests


class AnswerLog:
    """The stored answers, by item id. `add` stores the answers to one more item."""

    def __init__(self, path: Path, header: Header, *, restart: bool = False) -> None:
        """Open or create the file. `restart` discards stored answers.

        Raises QCompressError if the stored header differs from `header`, or if another program wrote the file.
        """
        self.path = path
        self.answers: dict[str, list[str]] = {}
        ANSWERS.check(path)
        if restart:
            ANSWERS.remove(path)
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
        """Read all complete lines. An incomplete last line, which an interruption can leave, is removed."""
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
            raise QCompressError(
                f"{self.path}: line {number} is not a JSON object; discard the stored answers with --restart"
            ) from None

    def _check_header(self, header: Header, stored: Header) -> None:
        changes = describe_changes(flatten(stored), flatten(header))
        if changes:
            raise QCompressError(
                f"{self.path}: since these answers were stored, {' and '.join(changes)}; discard them with --restart, "
                "or give another --out"
            )


def describe_changes(stored: Header, current: Header) -> list[str]:
    """Every value that differs from the stored header, in words. Digests are not printed."""
    return [
        CHANGES.get(key, f"{key.replace('_', ' ')} changed from {stored.get(key)} to {value}")
        for key, value in current.items()
        if stored.get(key) != value
    ]


def json_line(row: dict[str, Any]) -> bytes:
    """The row as one line of JSON. UTF-8 cannot store a lone surrogate, so that is written as a JSON escape."""
    return (json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8", errors="backslashreplace")


def flatten(header: Header) -> Header:
    """The header, with each of its settings as a separate key. An error can then name the setting that differs."""
    return {key: value for key, value in header.items() if key != "settings"} | dict(header.get("settings") or {})
