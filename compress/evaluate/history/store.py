"""The history: one SQLite file with the verdicts of all commands. Each has time, command, digest and the full row."""

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from compress.core.atomic import file_errors, full_disk
from compress.core.errors import QCompressError
from compress.core.rows import HistoryRow
from compress.core.versions import installed_versions

Row = dict[str, Any]
FILE = "history.sqlite"  # the file's name if --history is a folder
LEFT_OUT = ("record",)  # not stored: the checkpoint has the record, and the digest identifies the checkpoint
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
CAUSES = {  # SQLite's primary result code -> what is wrong; what to do
    sqlite3.SQLITE_BUSY: "another program has locked it; wait for it and run the command again",
    sqlite3.SQLITE_LOCKED: "another program has locked it; wait for it and run the command again",
    sqlite3.SQLITE_READONLY: "permission denied; change its permissions or use another --history",
    sqlite3.SQLITE_PERM: "permission denied; change its permissions or use another --history",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened; check the permissions of the file and its folder",
    sqlite3.SQLITE_IOERR: "the disk reports an error; check the disk or use another --history",
    sqlite3.SQLITE_CORRUPT: "the database is damaged; restore it from a copy or use another --history",
}
INSERT = "insert into verdicts (time, command, name, digest, row, tag) values (?, ?, ?, ?, ?, ?)"


def history_file(path: Path) -> Path:
    """The history file: `path` itself, or history.sqlite inside `path` if that is a folder."""
    return path / FILE if path.is_dir() else path


@contextmanager
def opened(file: Path) -> Iterator[sqlite3.Connection]:
    """A context with the database in a file, in one transaction.

    Raises QCompressError, with the cause, if the file cannot be used.
    """
    if file.exists() and not file.is_file():
        raise QCompressError(f"{file}: is not a regular file; pass another file to --history")
    try:
        with closing(sqlite3.connect(file)) as database, database:
            yield database
    except sqlite3.DatabaseError as error:
        raise QCompressError(database_error(file, error)) from error


def database_error(file: Path, error: sqlite3.DatabaseError) -> str:
    """One line for an error of SQLite: file, cause, cure."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the primary code, without the detail
    if code == sqlite3.SQLITE_FULL:
        return full_disk(file)
    cause = CAUSES.get(code, f"is not a history ({error}); pass another file to --history")
    return f"{file}: {cause}"


def append_verdicts(
    path: Path, command: str, rows: Sequence[Mapping[str, Any]], *, tag: str | None = None, time: datetime | None = None
) -> None:
    """Append all rows, or none of them if an error occurs. Each row needs `name` and `digest`.

    Raises QCompressError if the file at `path` is not a history.
    """
    file, now = history_file(path), (time or datetime.now(UTC)).isoformat(timespec="seconds")
    software = {"software": installed_versions()}
    lines = [(now, command, row["name"], row["digest"], row_json({**row, **software}), tag) for row in rows]
    with file_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    with opened(file) as database:
        check_no_other_tables(database, file)
        database.execute(TABLE)
        if "tag" not in {column[1] for column in database.execute("pragma table_info(verdicts)")}:
            database.execute("alter table verdicts add column tag text")
        database.executemany(INSERT, lines)


def check_no_other_tables(database: sqlite3.Connection, file: Path) -> None:
    """Raises QCompressError if the database belongs to another program: it has tables, but no table `verdicts`."""
    tables = [name for (name,) in database.execute("select name from sqlite_master where type = 'table'")]
    if tables and "verdicts" not in tables:
        raise QCompressError(f"{file}: is not a history, it has the table {tables[0]}; pass another file to --history")


def row_json(row: Mapping[str, Any]) -> str:
    return json.dumps({key: value for key, value in row.items() if key not in LEFT_OUT}, ensure_ascii=False)


def read_verdicts(path: Path) -> list[HistoryRow]:
    """All verdicts, the oldest first. Raises QCompressError if the file is missing or a row is damaged."""
    file = history_file(path)
    if not file.exists():
        raise QCompressError(f"{file}: file not found; create it with qcompress eval --history {file}")
    with opened(file) as database:
        database.row_factory = sqlite3.Row
        lines = [dict(row) for row in database.execute("select * from verdicts order by rowid")]
    return [read_row(line, f"{file}: row {number}") for number, line in enumerate(lines, 1)]


def read_row(line: Mapping[str, Any], where: str) -> HistoryRow:
    """One verdict of the table. Raises QCompressError, beginning with `where`, if its JSON is damaged."""
    try:
        value = dict(json.loads(line["row"]))
    except (KeyError, TypeError, ValueError, RecursionError):
        raise QCompressError(f"{where}: the JSON is damaged; remove the row or use another history") from None
    keys = ("time", "command", "tag")
    return cast("HistoryRow", {key: line.get(key) for key in keys} | value)
