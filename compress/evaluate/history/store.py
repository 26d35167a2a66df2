"""The history: verdicts of all commands in one SQLite file, with time, command, digest and the whole row."""

import json
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from compress.core.errors import QCompressError
from compress.core.rows import HistoryRow

Row = dict[str, Any]
FILE = "history.sqlite"  # inside a folder
LEFT_OUT = ("record",)  # is in the checkpoint, which the digest identifies
TABLE = """
create table if not exists verdicts (
    time text not null,     -- UTC, ISO 8601
    command text not null,  -- eval, verify, compare, check, bench, watch
    name text not null,     -- of the checkpoint
    digest text not null,   -- of its files
    row text not null,      -- JSON
    tag text                -- a label such as v1
)
"""
INSERT = "insert into verdicts (time, command, name, digest, row, tag) values (?, ?, ?, ?, ?, ?)"


def history_file(path: Path) -> Path:
    """`path`, or history.sqlite in it if it is a folder."""
    return path / FILE if path.is_dir() else path


def append_verdicts(
    path: Path, command: str, rows: Sequence[Mapping[str, Any]], *, tag: str | None = None, time: datetime | None = None
) -> None:
    """Append all rows, or none on an error. Rows need `name` and `digest`. QCompressError if `path` is another file."""
    file, now = history_file(path), (time or datetime.now(UTC)).isoformat(timespec="seconds")
    lines = [(now, command, row["name"], row["digest"], row_json(row), tag) for row in rows]
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with closing(sqlite3.connect(file)) as database, database:
            database.execute(TABLE)
            if "tag" not in {column[1] for column in database.execute("pragma table_info(verdicts)")}:
                database.execute("alter table verdicts add column tag text")
            database.executemany(INSERT, lines)
    except sqlite3.DatabaseError as error:
        raise QCompressError(f"{file}: is not a history ({error}); pass another file to --history") from error


def row_json(row: Mapping[str, Any]) -> str:
    return json.dumps({key: value for key, value in row.items() if key not in LEFT_OUT}, ensure_ascii=False)


def read_verdicts(path: Path) -> list[HistoryRow]:
    """All verdicts, oldest first. QCompressError for a missing file."""
    file = history_file(path)
    if not file.is_file():
        raise QCompressError(f"{file}: no such file; create it with qcompress eval --history {file}")
    try:
        with closing(sqlite3.connect(file)) as database:
            database.row_factory = sqlite3.Row
            lines = [dict(row) for row in database.execute("select * from verdicts order by rowid")]
    except sqlite3.DatabaseError as error:
        raise QCompressError(f"{file}: is not a history ({error}); pass another file to --history") from error
    keys = ("time", "command", "tag")
    return [cast("HistoryRow", {key: row.get(key) for key in keys} | json.loads(row["row"])) for row in lines]
