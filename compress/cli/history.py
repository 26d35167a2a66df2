"""qcompress history: every verdict that was kept."""

from pathlib import Path

import click

from compress.cli.console import emit, json_option

history_option = click.option(
    "--history", type=click.Path(dir_okay=False, path_type=Path), help="Append the verdict to this SQLite file."
)
SHOWN = ("time", "command", "name", "kind", "score", "retention", "kl", "perplexity")


@click.command("history")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--name", help="Of this checkpoint only.")
@click.option("--kind", help="Of this kind of task only.")
@json_option
def command(file: Path, name: str | None, kind: str | None, as_json: bool) -> None:
    """Show the verdicts that `eval` appended to FILE with --history, the oldest first.

    \b
    qcompress eval smollm2-awq --reference smollm2 --history verdicts.sqlite
    qcompress history verdicts.sqlite --kind all
    """
    from compress.evaluate.history import read_verdicts

    wanted = {key: value for key, value in (("name", name), ("kind", kind)) if value is not None}
    rows = [row for row in read_verdicts(file) if all(row.get(key) == value for key, value in wanted.items())]
    emit(rows if as_json else [{key: row.get(key) for key in SHOWN} for row in rows], as_json=as_json)
