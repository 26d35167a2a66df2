"""The files of a generation. Each process appends to a partial file next to the result, one line per batch.

    .answers.jsonl.0-of-2.part      the settings in the first line, then lines {"batch": 7, "answers": …}
    answers.jsonl                   the result, written when all batches are finished
    answers.jsonl.manifest.json     the settings, and counts of prompts and answers

A killed process can leave an incomplete last line; the next run removes it. Files with other settings are an error.
"""

import glob
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from compress.core.atomic import file_errors
from compress.core.errors import QCompressError
from compress.core.file_kind import first_object, json_kind, lines_kind
from compress.distill.targets.cache import differing

Facts = dict[str, Any]
Batches = dict[int, list[list[Any]]]
"""For each batch number, a list with [text, tokens, ended] for each prompt."""
ANSWERS = lines_kind("messages", "prompt", "tokens", "truncated")
MANIFEST = json_kind("facts", "counts")
PART = lines_kind("teacher", "prompts", "chat_template")  # in the first line


def manifest_path(out: Path) -> Path:
    return out.with_name(f"{out.name}.manifest.json")


def part_paths(out: Path) -> list[Path]:
    """The partial files of all processes that write `out`. Raises QCompressError if another program wrote one."""
    paths = sorted(out.parent.glob(f".{glob.escape(out.name)}.*-of-*.part"))
    for path in paths:
        PART.check(path)
    return paths


def find_facts(out: Path) -> Facts | None:
    """The settings of a finished or interrupted run that writes `out`, or None if there was no run.

    Raises QCompressError if `out` exists but qcompress did not write it.
    """
    MANIFEST.check(manifest_path(out))
    ANSWERS.check(out)
    if manifest_path(out).is_file():
        return dict(first_object(manifest_path(out))["facts"])
    for path in part_paths(out):  # checked first: a process killed at the end leaves `out` without its manifest
        for line in whole_lines(path)[:1]:
            return dict(parse(line, path, 1))
    if out.exists():
        raise QCompressError(f"{out}: the file exists, but `qcompress generate` did not write it; give another --out")
    return None


def discard_answers(out: Path, processes: int) -> None:
    """Remove the answers of an interrupted run. A finished `out` stays.

    Raises QCompressError if several processes run, because one could remove answers that another has just written.
    """
    if processes > 1:
        raise QCompressError(f"{out}: --restart works in one process only; remove .{out.name}.*.part, then start again")
    if manifest_path(out).is_file():
        return
    parts = part_paths(out)
    if parts:
        ANSWERS.remove(out)
    for path in parts:
        path.unlink()


def check_same_facts(out: Path, theirs: Facts, ours: Facts) -> None:
    """Raises QCompressError, with the first difference, if the earlier run's settings `theirs` differ from `ours`."""
    difference = differing(theirs, ours)
    if difference:
        raise QCompressError(
            f"{out}: an earlier run began this file with other settings, {difference}; give another --out, or --restart"
        )


def read_parts(out: Path, facts: Facts) -> Batches:
    """All finished batches in the partial files of all processes."""
    batches: Batches = {}
    for path in part_paths(out):
        lines = [parse(line, path, number) for number, line in enumerate(whole_lines(path), 1)]
        if lines:
            check_same_facts(out, lines[0], facts)
        batches |= {line["batch"]: line["answers"] for line in lines[1:]}
    return batches


def whole_lines(path: Path) -> list[str]:
    """All complete lines of a file: those that end with a newline."""
    return path.read_bytes().decode("utf-8", errors="replace").split("\n")[:-1]


def parse(line: str, path: Path, number: int) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        raise QCompressError(
            f"{path}: line {number} is damaged; remove the file and run the same command again"
        ) from None


class AnswerFile:
    """The partial file of one process. It starts with the settings; `add` appends a batch."""

    def __init__(self, out: Path, facts: Facts, rank: int, ranks: int):
        """Create the file, or remove an incomplete last line from an existing file."""
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
