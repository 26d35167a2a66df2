import json
import os
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from functools import partial

import pytest
from click.testing import CliRunner

from compress.cli import cli
from compress.core.errors import QCompressError
from compress.core.versions import installed_versions
from compress.evaluate.history.store import append_verdicts, database_error, read_verdicts

ROWS = [{"name": "awq", "digest": "sha256:1", "kind": kind, "score": 0.5, "retention": None} for kind in ("qa", "all")]


def test_verdicts_are_read_in_the_order_they_were_appended(tmp_path):
    file = tmp_path / "new" / "verdicts.sqlite"
    append_verdicts(file, "eval", ROWS, time=datetime(2025, 1, 2, tzinfo=UTC), tag="v1")
    append_verdicts(file.parent / "verdicts.sqlite", "verify", [ROWS[0] | {"record": {"rows": [1]}}])
    verdicts = read_verdicts(file)
    first = {"time": "2025-01-02T00:00:00+00:00", "command": "eval", "tag": "v1", "software": installed_versions()}
    assert verdicts[:2] == [first | row for row in ROWS]
    assert [row["command"] for row in verdicts] == ["eval", "eval", "verify"] and verdicts[2]["tag"] is None
    assert "record" not in verdicts[2]


def test_a_folder_can_replace_the_history_file_inside_it(tmp_path):
    append_verdicts(tmp_path, "eval", ROWS)
    assert read_verdicts(tmp_path) == read_verdicts(tmp_path / "history.sqlite") and len(read_verdicts(tmp_path)) == 2


def test_a_history_without_a_tag_column_can_be_extended(tmp_path):
    file = tmp_path / "old.sqlite"
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("create table verdicts (time text, command text, name text, digest text, row text)")
        database.execute("insert into verdicts values (?, ?, ?, ?, ?)", ("t", "eval", "a", "b", '{"name": "a"}'))
    append_verdicts(file, "eval", ROWS[:1], tag="v2")
    assert [row["tag"] for row in read_verdicts(file)] == [None, "v2"]


def test_one_invalid_row_stores_no_row_at_all(tmp_path):
    file = tmp_path / "verdicts.sqlite"
    append_verdicts(file, "eval", ROWS)
    with pytest.raises((TypeError, KeyError)):
        append_verdicts(file, "eval", [ROWS[0], {"name": "x"}])
    assert len(read_verdicts(file)) == 2


def test_a_file_that_is_no_history_is_rejected_and_unchanged(tmp_path):
    file = tmp_path / "notes.txt"
    file.write_text("not a database, but long enough to have a header of one hundred bytes" * 3)
    before = file.read_bytes()
    for call in (lambda: append_verdicts(file, "eval", ROWS), lambda: read_verdicts(file)):
        with pytest.raises(QCompressError, match=r"notes\.txt: is not a history"):
            call()
    assert file.read_bytes() == before
    with pytest.raises(QCompressError, match="file not found"):
        read_verdicts(tmp_path / "none")


def test_eval_stores_its_rows_and_history_filters_them(tiny_llama, tmp_path):
    suite, history = tmp_path / "suite.jsonl", tmp_path / "verdicts.sqlite"
    item = {"id": "a", "kind": "qa", "language": "en", "turns": ["who?"], "expected": {"answers": ["zebra"]}}
    suite.write_text(json.dumps(item) + "\n")
    options = ("--reference", tiny_llama, "--suite", suite, "--out", tmp_path / "out", "--history", history)
    ended = CliRunner().invoke(cli, ["eval", *map(str, (tiny_llama, *options)), "--min-retention", "85"])
    assert ended.exit_code == 3, ended.output  # the verdict is stored all the same
    shown = CliRunner().invoke(cli, ["history", str(history), "--kind", "qa", "--json"])
    assert [row["role"] for row in json.loads(shown.stdout)] == ["reference", "candidate"]
    assert "qa" in CliRunner().invoke(cli, ["history", str(history)]).stdout


def test_a_locked_a_damaged_and_a_foreign_history_have_a_line_each(tmp_path, monkeypatch):
    file = tmp_path / "verdicts.sqlite"
    append_verdicts(file, "eval", ROWS)
    short = partial(sqlite3.connect, timeout=0)
    monkeypatch.setattr("compress.evaluate.history.store.sqlite3.connect", short)
    with closing(short(file)) as other:
        other.execute("begin exclusive")
        with pytest.raises(QCompressError, match=r"verdicts\.sqlite: another program has locked it; wait for it"):
            append_verdicts(file, "eval", ROWS)
    with closing(short(tmp_path / "app.sqlite")) as database, database:
        database.execute("create table users (name text)")
    before = (tmp_path / "app.sqlite").read_bytes()
    with pytest.raises(QCompressError, match=r"app\.sqlite: is not a history, it has the table users"):
        append_verdicts(tmp_path / "app.sqlite", "eval", ROWS)
    assert (tmp_path / "app.sqlite").read_bytes() == before
    with closing(short(file)) as database, database:
        database.execute("update verdicts set row = '{' where rowid = 2")
    with pytest.raises(QCompressError, match=r"verdicts\.sqlite: row 2: the JSON is damaged"):
        read_verdicts(file)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (sqlite3.SQLITE_CANTOPEN, "it cannot be opened; check the permissions"),
        (sqlite3.SQLITE_READONLY_DIRECTORY, "permission denied"),
        (sqlite3.SQLITE_IOERR_WRITE, "the disk reports an error"),
        (sqlite3.SQLITE_FULL, "the disk is full, "),
        (sqlite3.SQLITE_CORRUPT, "the database is damaged"),
        (sqlite3.SQLITE_NOTADB, "is not a history"),
    ],
)
def test_every_error_of_the_database_is_one_true_sentence(tmp_path, code, words):
    error = sqlite3.OperationalError("x")
    error.sqlite_errorcode = code
    line = database_error(tmp_path / "h.sqlite", error)
    assert line.startswith(f"{tmp_path / 'h.sqlite'}: {words}") and "\n" not in line


def test_a_history_that_is_no_regular_file_is_rejected(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for call in (lambda: append_verdicts(tmp_path / "pipe", "eval", ROWS), lambda: read_verdicts(tmp_path / "pipe")):
        with pytest.raises(QCompressError, match="is not a regular file"):
            call()
