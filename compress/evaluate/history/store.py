"""Every verdict ever given, in one SQLite file: when, by which command, of which bytes, and the whole report row."""

import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from compress.core.errors import QCompressError

Row = dict[str, Any]
FILE = "history.sqlite"  # where a folder is given
LEFT_OUT = ("record",)  # lies beside the weights, and the digest names it
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
    """The file itself, or the one in a folder."""
    return path / FILE if path.is_dir() else path


def append_verdicts(
    path: Path, command: str, rows: Sequence[Row], *, tag: str | None = None, time: datetime | None = None
) -> None:
    """Add one line per row, all or none. Rows hold `name` and `digest`. QCompressError when it is no history file."""
    file, now = history_file(path), (time or datetime.now(UTC)).isoformat(timespec="seconds")
    lines = [(now, command, row["name"], row["digest"], kept_text(row), tag) for row in rows]
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with closing(sqlite3.connect(file)) as database, database:
            database.execute(TABLE)
            if "tag" not in {column[1] for column in database.execute("pragma table_info(verdicts)")}:
                database.execute("alter table verdicts add column tag text")
            database.executemany(INSERT, lines)
    except sqlite3.DatabaseError as error:
        raise QCompressError(f"{file}: is no history ({error}); name another file") from error


def kept_text(row: Row) -> str:
    return json.dumps({key: value for key, value in row.items() if key not in LEFT_OUT}, ensure_ascii=False)


def read_verdicts(path: Path) -> list[Row]:
    """All verdicts, the oldest first: the report rows with `time`, `command` and `tag` before them."""
    file = history_file(path)
    if not file.is_file():
        raise QCompressError(f"{file}: no such file; qcompress eval --history {file} begins it")
    try:
        with closing(sqlite3.connect(file)) as database:
            database.row_factory = sqlite3.Row
            found = [dict(row) for row in database.execute("select * from verdicts order by rowid")]
    except sqlite3.DatabaseError as error:
        raise QCompressError(f"{file}: is no history ({error}); name another file") from error
    return [{key: row.get(key) for key in ("time", "command", "tag")} | json.loads(row["row"]) for row in found]
