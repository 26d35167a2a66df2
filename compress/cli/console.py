"""The one place that writes to the terminal: progress to stderr, results to stdout."""

import gc
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

Row = dict[str, Any]

progress = Console(stderr=True, highlight=False, soft_wrap=True)
results = Console(highlight=False, soft_wrap=True)
unfolded = Console(highlight=False, width=1000)  # tables in a pipe or a file, where nothing has to fit
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")


@contextmanager
def imports() -> Iterator[None]:
    """While open, a command imports what it needs. All of that stays, so no collection of garbage shall go through it:
    not while it grows, and not later."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collecting:
            gc.enable()


def report(row: Row) -> None:
    """One line of progress: key value pairs."""
    progress.print(pairs(row))


@contextmanager
def live_report() -> Iterator[Callable[[Row], None]]:
    """`report`; on a terminal the steps of a training share one line that changes, and those that are judged stay."""
    if not progress.is_terminal:
        yield report
        return
    with progress.status("") as status:

        def tell(row: Row) -> None:
            if "loss" in row and "heldout_kl" not in row:
                status.update(pairs(row))
            else:
                report(row)

        yield tell


def pairs(row: Row) -> str:
    """A row in one line, with rich's marks."""
    told = [f"[dim]{escape(key)}[/dim] {escape(show(value))}" for key, value in row.items() if value is not None]
    return "  ".join(told)


def show(value: Any) -> str:
    """A value as a person reads it: 4 significant digits, thousands set apart."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    return str(value)


def emit(rows: Sequence[Row] | Row, *, as_json: bool, title: str | None = None) -> None:
    """The result: JSON for machines, or a table of the same rows for people, without what is nested in them."""
    if as_json:
        click.echo(json.dumps(rows, indent=2, ensure_ascii=False, default=str))
        return
    rows = [rows] if isinstance(rows, dict) else list(rows)
    flat = [{k: v for k, v in row.items() if not isinstance(v, (dict, list))} for row in rows]
    if len(flat) == 1:
        width = max(map(len, flat[0]), default=0)
        for key, value in flat[0].items():
            results.print(f"{key:<{width}}  {show(value)}", markup=False)
        return
    table = Table(title=title, box=None, header_style="bold")
    columns = list(dict.fromkeys(key for row in flat for key in row))
    for column in columns:
        table.add_column(column.replace("_", " "), justify="left" if column in ("name", "rule") else "right")
    for row in flat:
        table.add_row(*[escape(show(row[c])) if row.get(c) is not None else "" for c in columns])
    (results if results.is_terminal else unfolded).print(table)
