"""What other commands found about the same checkpoints: their JSON files, read and matched by digest for a report."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compress.checkpoint.read import Checkpoint
from compress.core.errors import QCompressError
from compress.evaluate.names import short_names

Row = dict[str, Any]
EVAL = "eval.json"


def load_results(checkpoints: Sequence[Checkpoint], evaluated: Path | None, bench: Path | None) -> dict[str, list[Row]]:
    """{"retention", "speed"}: what the files say of the `checkpoints`, the reference's first.

    Files are read and matched before hours are spent on anything else.
    """
    names = short_names([checkpoint.path for checkpoint in checkpoints])
    named = zip(names, checkpoints, strict=True) if evaluated or bench else ()
    compared = [{"name": name, "digest": checkpoint.digest} for name, checkpoint in named]
    return {
        "retention": retention_of(evaluated, compared) if evaluated else [],
        "speed": speed_of(bench, compared) if bench else [],
    }


def read_rows(file: Path, needed: Sequence[str]) -> list[Row]:
    """The rows of a file that a command's --json wrote. QCompressError when it holds none, or lacks a key."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise QCompressError(f"{file}: cannot be read ({error}); name what a command wrote with --json") from None
    rows = found if isinstance(found, list) else [found]
    for number, row in enumerate(rows, 1):
        missing = [key for key in needed if not isinstance(row, dict) or key not in row]
        if missing:
            raise QCompressError(f"{file}: row {number} has no {missing[0]}; name what the command wrote with --json")
    return rows


def retention_of(path: Path, compared: Sequence[Row]) -> list[Row]:
    """`eval`'s rows on the compared checkpoints, from its folder or its JSON; rows on others are left out.

    QCompressError when they were measured against another reference, or are on none of the candidates.
    """
    file = path / EVAL if path.is_dir() else path
    rows = read_rows(file, ("name", "digest", "role", "kind", "items", "errors", "empty", "score", "retention"))
    base, ours = compared[0], next((row for row in rows if row["role"] == "reference"), None)
    if ours is None or ours["digest"] != base["digest"]:
        name = ours["name"] if ours else "nothing"
        raise QCompressError(f"{file}: was measured against {name}, not {base['name']}; run qcompress eval again")
    return matched(file, rows, compared)


def speed_of(file: Path, compared: Sequence[Row]) -> list[Row]:
    """`bench`'s rows on the compared checkpoints: those it measured by digest, those it predicted by their names."""
    rows = read_rows(file, ("name", "digest", "kind"))
    measured = [row for row in rows if row["kind"] == "measured"]
    measured = matched(file, measured, compared) if measured else []
    names = {row["name"] for row in (*measured, *compared)}
    return measured + [row for row in rows if row["kind"] == "predicted" and row["name"] in names]


def matched(file: Path, rows: Sequence[Row], compared: Sequence[Row]) -> list[Row]:
    """The rows whose digest is one of the compared. QCompressError when none is a candidate's."""
    known = {row["digest"] for row in compared}
    found = [row for row in rows if row["digest"] in known]
    if not {row["digest"] for row in found} & {row["digest"] for row in compared[1:]}:
        names = ", ".join(dict.fromkeys(row["name"] for row in rows))
        raise QCompressError(f"{file}: is on {names} as they were, and on no candidate here; run its command again")
    return found
