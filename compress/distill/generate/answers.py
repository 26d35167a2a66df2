"""Answers on disk while they come: one file per process beside the result, a line per batch, so whole or not there.

    .answers.jsonl.0-of-2.part      first line: what is asked, of whom, how; then {"batch": 7, "answers": …}
    answers.jsonl                   made when every batch is there
    answers.jsonl.manifest.json     the same first line, and counts

A line that a killed process left unfinished goes. Files of other settings are refused by the name of what differs.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from compress.core.atomic import disk_errors
from compress.core.errors import QCompressError
from compress.distill.targets.cache import differing

Facts = dict[str, Any]
Batches = dict[int, list[list[Any]]]
"""By number of the batch, for each of its prompts [text, tokens, ended]."""


def manifest_path(out: Path) -> Path:
    return out.with_name(f"{out.name}.manifest.json")


def part_paths(out: Path) -> list[Path]:
    """The unfinished files beside `out`, of all processes."""
    return sorted(out.parent.glob(f".{out.name}.*-of-*.part"))


def find_facts(out: Path) -> Facts | None:
    """What was asked for `out`, finished or not; None where nothing is there. QCompressError for a strange file."""
    if manifest_path(out).is_file():
        return dict(parse(manifest_path(out).read_text(encoding="utf-8"), manifest_path(out), 1)["facts"])
    for path in part_paths(out):  # before `out` itself, which a killed process may have left without its manifest
        for line in whole_lines(path)[:1]:
            return dict(parse(line, path, 1))
    if out.exists():
        raise QCompressError(f"{out}: is there and was not written by `qcompress generate`; give another --out")
    return None


def discard_answers(out: Path, processes: int) -> None:
    """Remove the answers of an interrupted run; a finished `out` stays.

    QCompressError when several processes run: one of them would remove what another has just written.
    """
    if processes > 1:
        raise QCompressError(f"{out}: --restart works in one process only; remove .{out.name}.*.part, then start again")
    if manifest_path(out).is_file():
        return
    parts = part_paths(out)
    if parts:
        out.unlink(missing_ok=True)
    for path in parts:
        path.unlink()


def refuse_other(out: Path, theirs: Facts, ours: Facts) -> None:
    """QCompressError that names the first of our facts that is another there."""
    difference = differing(theirs, ours)
    if difference:
        raise QCompressError(f"{out}: was asked with another {difference}; give the same, or another --out")


def read_parts(out: Path, facts: Facts) -> Batches:
    """The batches that any process has finished."""
    found: Batches = {}
    for path in part_paths(out):
        lines = [parse(line, path, number) for number, line in enumerate(whole_lines(path), 1)]
        if lines:
            refuse_other(out, lines[0], facts)
        found |= {line["batch"]: line["answers"] for line in lines[1:]}
    return found


def whole_lines(path: Path) -> list[str]:
    """The lines that end."""
    return path.read_bytes().decode("utf-8", errors="replace").split("\n")[:-1]


def parse(line: str, path: Path, number: int) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        raise QCompressError(
            f"{path}: line {number}: is no answer; remove the file, and its batches come again"
        ) from None


class AnswerFile:
    """The file of one process, to add to."""

    def __init__(self, out: Path, facts: Facts, rank: int, ranks: int):
        """Begin it, or cut off what a killed process left unfinished."""
        self.path = out.with_name(f".{out.name}.{rank}-of-{ranks}.part")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        written = self.path.read_bytes() if self.path.is_file() else b""
        whole = written.rfind(b"\n") + 1
        if whole != len(written):
            os.truncate(self.path, whole)
        if not whole:
            self._append(facts)

    def add(self, batch: int, answers: Iterable[list[Any]]) -> None:
        self._append({"batch": batch, "answers": list(answers)})

    def _append(self, row: dict[str, Any]) -> None:
        with disk_errors(self.path), self.path.open("ab") as file:
            file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
