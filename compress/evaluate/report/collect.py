"""Read results of eval and bench from JSON, and match them with the compared checkpoints by digest."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from calibration.errors import CalibrationError
from calibration.files import check_regular, parse_json, read_text
from compress.checkpoint.read import Checkpoint
from compress.core.errors import QCompressError
from compress.evaluate.names import short_names

Row = dict[str, Any]
EVAL = "eval.json"


def load_results(checkpoints: Sequence[Checkpoint], evaluated: Path | None, bench: Path | None) -> dict[str, list[Row]]:
    """The rows of `eval` and `bench` on the compared checkpoints, under "retention" and "speed".

    The first of `checkpoints` is the reference. Files are read before any model runs, so a wrong file fails early.
    """
    names = short_names([checkpoint.path for checkpoint in checkpoints])
    named = zip(names, checkpoints, strict=True) if evaluated or bench else ()
    compared = [{"name": name, "digest": checkpoint.digest} for name, checkpoint in named]
    return {
        "retention": retention_of(evaluated, compared) if evaluated else [],
        "speed": speed_of(bench, compared) if bench else [],
    }


def read_rows(file: Path, needed: Sequence[str]) -> list[Row]:
    """The rows of a file that a command wrote with --json.

    Raises QCompressError if the file has no rows, or if a row lacks a key of `needed`.
    """
    try:
        check_regular(file)
        value = parse_json(read_text(file), str(file))
    except CalibrationError as error:
        raise QCompressError(f"{error}; pass the output of a command with --json") from None
    if not_finite(value):
        raise QCompressError(f"{file}: contains NaN or Infinity; write the file again with the same command")
    rows = value if isinstance(value, list) else [value]
    for number, row in enumerate(rows, 1):
        missing = [key for key in needed if not isinstance(row, dict) or key not in row]
        if missing:
            raise QCompressError(f"{file}: row {number} has no key {missing[0]}; write the file again with --json")
    return rows


def not_finite(value: Any) -> bool:
    """Whether a JSON value contains NaN or Infinity, which a report cannot hold."""
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return True
    return False


def retention_of(path: Path, compared: Sequence[Row]) -> list[Row]:
    """The rows of `eval` on the compared checkpoints. `path` is the --out folder of `eval`, or its JSON output.

    Raises QCompressError if the results have another reference, or if they contain no row on a candidate.
    """
    file = path / EVAL if path.is_dir() else path
    rows = read_rows(file, ("name", "digest", "role", "kind", "items", "errors", "empty", "score", "retention"))
    base, reference = compared[0], next((row for row in rows if row["role"] == "reference"), None)
    if reference is None or reference["digest"] != base["digest"]:
        name = reference["name"] if reference else "nothing"
        raise QCompressError(
            f"{file}: these results were measured against {name}, not {base['name']}; run qcompress eval again"
        )
    return matched(file, rows, compared)


def speed_of(file: Path, compared: Sequence[Row]) -> list[Row]:
    """The rows of `bench` on the compared checkpoints. Measured rows are matched by digest, predictions by name."""
    rows = read_rows(file, ("name", "digest", "kind"))
    measured = [row for row in rows if row["kind"] == "measured"]
    measured = matched(file, measured, compared) if measured else []
    names = {row["name"] for row in (*measured, *compared)}
    return measured + [row for row in rows if row["kind"] == "predicted" and row["name"] in names]


def matched(file: Path, rows: Sequence[Row], compared: Sequence[Row]) -> list[Row]:
    """The rows with the digest of a compared checkpoint. Raises QCompressError if no row belongs to a candidate."""
    digests = {row["digest"] for row in compared}
    matching = [row for row in rows if row["digest"] in digests]
    if not {row["digest"] for row in matching} & {row["digest"] for row in compared[1:]}:
        names = ", ".join(dict.fromkeys(row["name"] for row in rows))
        raise QCompressError(
            f"{file}: these results are for {names}, but the candidates have other files; run the command again"
        )
    return matching
