"""Answers on disk, one line an item, written as they come: an interrupted run goes on with the next item.

The first line says whose answers they are: checkpoint digest, suite digest, generation settings. Answers of anything
else are refused by name, never mixed.
"""

import json
from pathlib import Path
from typing import Any

from compress.core.errors import QCompressError

Header = dict[str, Any]


class AnswerFile:
    """The answers that are there, by item id; `add` writes one more."""

    def __init__(self, path: Path, header: Header) -> None:
        """Open or begin the file. QCompressError when it holds the answers of another checkpoint, suite or setting."""
        self.path = path
        self.answers: dict[str, list[str]] = {}
        if path.exists():
            self._read(header)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._append(header)

    def add(self, item: str, answers: list[str]) -> None:
        self._append({"id": item, "answers": answers})
        self.answers[item] = answers

    def _append(self, row: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def _read(self, header: Header) -> None:
        """Take what is there; a last line without its end was cut off by an interruption and goes."""
        text = self.path.read_text(encoding="utf-8", errors="ignore")
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            self.path.write_text(whole, encoding="utf-8")
        found, *rows = [self._parse(line, number) for number, line in enumerate(whole.splitlines(), 1)] or [{}]
        self._refuse_other(header, found)
        self.answers = {row["id"]: row["answers"] for row in rows if {"id", "answers"} <= row.keys()}

    def _parse(self, line: str, number: int) -> dict[str, Any]:
        try:
            return dict(json.loads(line))
        except (ValueError, TypeError):
            raise QCompressError(f"{self.path}: line {number}: is no answer; remove the file") from None

    def _refuse_other(self, header: Header, found: Header) -> None:
        for key, value in header.items():
            if found.get(key) != value:
                raise QCompressError(
                    f"{self.path}: holds answers with {key} {found.get(key)}, not {value}; "
                    "remove it, or name another directory with --out"
                )
