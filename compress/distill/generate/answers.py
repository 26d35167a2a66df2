"""Answers on disk during generation: one file per process next to the result, one line per batch.

    .answers.jsonl.0-of-2.part      first line: the settings; then {"batch": 7, "answers": …}
    answers.jsonl                   written when every batch is finished
    answers.jsonl.manifest.json     the same first line, and counts

The unfinished last line of a killed process is removed. Files of other settings are refused.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from compress.core.atomic import file_errors
from compress.core.errors import QCompressError
from compress.distill.targets.cache import differing

Facts = dict[str, Any]
Batches = dict[int, list[list[Any]]]
"""Batch number -> [text, tokens, ended] for each of its prompts."""


def manifest_path(out: Path) -> Path:
    return out.with_name(f"{out.name}.manifest.json")


def part_paths(out: Path) -> list[Path]:
    """The partial files of all processes next to `out`."""
    return sorted(out.parent.glob(f".{out.name}.*-of-*.part"))


def find_facts(out: Path) -> Facts | None:
    """The settings of `out`, finished or not; None if it does not exist. QCompressError for a foreign file."""
    if manifest_path(out).is_file():
        return dict(parse(manifest_path(out).read_text(encoding="utf-8"), manifest_path(out), 1)["facts"])
    for path in part_paths(out):  # before `out` itself, which a killed process may have left without its manifest
        for line in whole_lines(path)[:1]:
            return dict(parse(line, path, 1))
    if out.exists():
        raise QCompressError(f"{out}: exists and was not written by `qcompress generate`; give another --out")
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
    """QCompressError that names the first setting that differs."""
    difference = differing(theirs, ours)
    if difference:
        raise QCompressError(f"{out}: was begun with another {difference}; use another --out, or --restart")


def read_parts(out: Path, facts: Facts) -> Batches:
    """The batches that any process has finished."""
    batches: Batches = {}
    for path in part_paths(out):
        lines = [parse(line, path, number) for number, line in enumerate(whole_lines(path), 1)]
        if lines:
            refuse_other(out, lines[0], facts)
        batches |= {line["batch"]: line["answers"] for line in lines[1:]}
    return batches


def whole_lines(path: Path) -> list[str]:
    """The lines that end with a newline."""
    return path.read_bytes().decode("utf-8", errors="replace").split("\n")[:-1]


def parse(line: str, path: Path, number: int) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        raise QCompressError(
            f"{path}: line {number} is not an answer; remove the file, and its batches run again"
        ) from None


class AnswerFile:
    """The partial file of one process."""

    def __init__(self, out: Path, facts: Facts, rank: int, ranks: int):
        """Create the file, or remove the unfinished line of a killed process."""
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
        with file_errors(self.path), self.path.open("ab") as file:
            file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
