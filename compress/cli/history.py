"""qcompress history: every verdict that was kept; and the options by which other commands keep theirs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from compress.cli.console import emit, json_option

Row = dict[str, Any]
SHOWN = ("time", "command", "tag", "name", "kind", "score", "retention", "change", "kl", "perplexity", "passed")


def history_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--history and --tag, which a command hands to `keep_verdicts`."""
    where = "Append the verdict to this SQLite file, or to history.sqlite in this folder."
    command = click.option("--tag", help="A label for it in the history, such as v1.")(command)
    return click.option("--history", type=click.Path(path_type=Path), help=where)(command)


def keep_verdicts(history: Path | None, tag: str | None, command: str, rows: list[Row]) -> None:
    """Append the rows where a history was named."""
    from compress.evaluate.history.store import append_verdicts

    if history:
        append_verdicts(history, command, rows, tag=tag)


def need_history(history: Path | None, tag: str | None) -> None:
    """UsageError for a tag that nothing would keep; QCompressError for a file that is no history, before the work."""
    from compress.evaluate.history.store import append_verdicts

    if tag is not None and history is None:
        raise click.UsageError("--tag goes with --history")
    if history:
        append_verdicts(history, "", [])


@click.command("history")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--name", help="Of this checkpoint only.")
@click.option("--kind", help="Of this kind of task only.")
@click.option("--tag", help="With this label only.")
@json_option
def command(file: Path, name: str | None, kind: str | None, tag: str | None, as_json: bool) -> None:
    """Show the verdicts that eval, verify, compare, check, bench and watch appended to FILE (or FILE/history.sqlite).

    The oldest comes first.

    \b
    qcompress eval smollm2-awq --reference smollm2 --history verdicts.sqlite --tag v1
    qcompress history verdicts.sqlite --kind all
    """
    from compress.evaluate.history.store import read_verdicts

    wanted = {key: value for key, value in (("name", name), ("kind", kind), ("tag", tag)) if value is not None}
    rows = [row for row in read_verdicts(file) if all(row.get(key) == value for key, value in wanted.items())]
    emit(rows if as_json else [{key: row.get(key) for key in SHOWN} for row in rows], as_json=as_json)
