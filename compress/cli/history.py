"""qcompress history: show stored verdicts. Also the options with which other commands store verdicts."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from compress.cli.console import emit
from compress.cli.options import Command, json_option, shared_option

COLUMNS = (
    "time",
    "command",
    "tag",
    "name",
    "kind",
    "score",
    "retention",
    "change",
    "kl",
    "perplexity",
    "measured",
    "passed",
    "reason",
)


def history_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator that adds --history and --tag, the first two arguments of `append_history`."""
    file = "SQLite file that the verdict is appended to, or a folder with history.sqlite."
    command = shared_option("--tag", group="Report", help="Label of the verdict in the history, such as v1.")(command)
    return shared_option("--history", group="Report", type=click.Path(path_type=Path), help=file)(command)


def append_history(history: Path | None, tag: str | None, command: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Append the rows to the history. Does nothing without --history."""
    from compress.evaluate.history.store import append_verdicts

    if history:
        append_verdicts(history, command, rows, tag=tag)


def check_history_options(history: Path | None, tag: str | None) -> None:
    """Raises UsageError if --tag is used without --history. Raises QCompressError if the file is not a history.

    Commands call this before any work.
    """
    from compress.evaluate.history.store import append_verdicts

    if tag is not None and history is None:
        raise click.UsageError("--tag needs --history")
    if history:
        append_verdicts(history, "", [])


@click.command("history", cls=Command)
@click.argument("file", type=click.Path(path_type=Path))
@shared_option("--name", group="Essentials", help="Show only verdicts on the checkpoint with this name.")
@shared_option("--kind", group="Essentials", help="Show only verdicts on this kind of task.")
@shared_option("--tag", group="Essentials", help="Show only verdicts with this label.")
@json_option
def command(file: Path, name: str | None, kind: str | None, tag: str | None, as_json: bool) -> None:
    """Show the verdicts stored in FILE (or FILE/history.sqlite), oldest first.

    The commands eval, verify, compare, check, bench and watch store verdicts with --history.

    \b
    qcompress eval smollm2-awq --reference smollm2 --history verdicts.sqlite --tag v1
    qcompress history verdicts.sqlite --kind all
    """
    from compress.evaluate.history.store import read_verdicts

    filters = {key: value for key, value in (("name", name), ("kind", kind), ("tag", tag)) if value is not None}
    rows = [row for row in read_verdicts(file) if all(row.get(key) == value for key, value in filters.items())]
    emit(rows if as_json else [terminal_row(row) for row in rows], as_json=as_json)


def terminal_row(row: Mapping[str, Any]) -> dict[str, object]:
    """A verdict for the terminal. Scores are 0 to 100, as in `eval` and `watch`."""
    shown = {key: row.get(key) for key in COLUMNS}
    score, tokens = row.get("score"), row.get("tokens")
    errors = {f"{key}_se": row.get(f"{key}_se") for key in ("kl", "perplexity")}
    return shown | errors | {"score": None if score is None else 100 * score, "tokens_scored": tokens}
