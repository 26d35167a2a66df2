"""Every verdict ever given, in one SQLite file: when, by which command, of which bytes, and the whole report row."""

import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from compress.errors import QCompressError

Row = dict[str, Any]
TABLE = """
create table if not exists verdicts (
    time text not null,     -- UTC, ISO 8601
    command text not null,  -- eval
    name text not null,     -- of the checkpoint
    digest text not null,   -- of its files
    row text not null       -- JSON
)
"""


def append_verdicts(file: Path, command: str, rows: Sequence[Row], time: datetime | None = None) -> None:
    """Add one line per row, all or none. Rows hold `name` and `digest`. QCompressError when it is no history file."""
    now = (time or datetime.now(UTC)).isoformat(timespec="seconds")
    lines = [(now, command, row["name"], row["digest"], json.dumps(row, ensure_ascii=False)) for row in rows]
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with closing(sqlite3.connect(file)) as database, database:
            database.execute(TABLE)
            database.executemany("insert into verdicts values (?, ?, ?, ?, ?)", lines)
    except sqlite3.DatabaseError as error:
        raise QCompressError(f"{file}: is no history ({error}); name another file") from error


def read_verdicts(file: Path) -> list[Row]:
    """All verdicts, the oldest first: the report rows with `time` and `command` before them."""
    if not file.is_file():
        raise QCompressError(f"{file}: no such file; qcompress eval --history {file} begins it")
    try:
        with closing(sqlite3.connect(file)) as database:
            found = database.execute("select time, command, row from verdicts order by rowid").fetchall()
    except sqlite3.DatabaseError as error:
        raise QCompressError(f"{file}: is no history ({error}); name another file") from error
    return [{"time": time, "command": command} | json.loads(row) for time, command, row in found]
