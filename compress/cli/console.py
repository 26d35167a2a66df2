"""All output to the terminal: progress goes to stderr, results go to stdout."""

import gc
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from compress.cli.labels import COUNTER, label, texts, visible
from compress.core.units import format_bytes

Row = dict[str, Any]
LINE_SECONDS = 5  # seconds between two progress lines in a log file, so that a log of a long run stays readable
SAMPLE_SECONDS = 3600  # the time left is estimated from this many seconds, because a block may take minutes
MILESTONES = ("eval_kl",)  # rows with one of these keys are also printed as lines above the progress bar

progress = Console(stderr=True, highlight=False, soft_wrap=True)
results = Console(highlight=False, soft_wrap=True)
unfolded = Console(highlight=False, width=1000)  # for tables in a pipe or a file, which need not fit a screen


@contextmanager
def imports() -> Iterator[None]:
    """A context for a command's heavy imports.

    Garbage collection then skips the imported objects, because they live as long as the process.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collecting:
            gc.enable()


class Reporter:
    """Shows report rows on stderr; jobs call it as `report(row)`.

    A row with a counter, such as {"block": "3/30"}, moves a progress bar if stderr is a terminal. Otherwise it becomes
    a line with the time left; between the first and the last row, there is at most one line every LINE_SECONDS. A row
    without a counter is always a line. `quiet` shows nothing. `verbose` shows every row as a line.
    """

    def __init__(self, console: Console) -> None:
        self.console, self.quiet, self.verbose = console, False, False
        self.bars: Progress | None = None
        self.tasks: dict[tuple[str, str], TaskID] = {}
        self.began: dict[tuple[str, str], tuple[int, float]] = {}  # count and time of each counter's first row
        self.printed = 0.0

    def __call__(self, row: Row) -> None:
        if self.quiet:
            return
        key = counter_key(row)
        if key is None:
            self.print(row)
        elif self.console.is_terminal and not self.console.is_dumb_terminal:
            self.advance(key, row)
            if self.verbose or any(name in row for name in MILESTONES):
                self.print(row)
        else:
            self.add_line(key, row)

    def print(self, row: Row) -> None:
        self.console.print(pairs(row))

    def add_line(self, key: str, row: Row) -> None:
        """Print the row of a counter as a line, with the time left.

        Only the counter's first and last rows are always printed; between them, one row every LINE_SECONDS.
        """
        name, now = (title(key, row), key), time.monotonic()
        done, total = map(int, row[key].split("/"))
        if name not in self.began or self.began[name][0] > done:  # the counter has started again
            self.began[name] = done, now
        first, started = self.began[name]
        if self.verbose or done in (first, total) or now - self.printed >= LINE_SECONDS:
            self.printed = now
            left = {"eta": (now - started) / (done - first) * (total - done)} if first < done < total else {}
            self.print(row if "eta" in row else row | left)

    def advance(self, key: str, row: Row) -> None:
        """Advance the progress bar of this counter. The bar appears with the counter's first progress report."""
        done, total = map(int, row[key].split("/"))
        name = title(key, row)
        details = {name: value for name, value in row.items() if name not in ("eta", "seconds")}
        details = {name: value for name, value in details.items() if isinstance(value, int | float)}
        bars = self.open_bars()
        task = self.tasks.get((name, key))
        if task is None or bars.tasks[bars.task_ids.index(task)].completed > done:  # the counter has started again
            task = bars.add_task(escape(f"{name} {label(key)}".strip()), total=total, details="")
            self.tasks[name, key] = task
        bars.update(task, completed=done, details=pairs(details))

    def open_bars(self) -> Progress:
        if self.bars is None:
            self.bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
                TextColumn("{task.completed:,.0f} of {task.total:,.0f}"),
                TimeRemainingColumn(compact=True, elapsed_when_finished=True),
                TextColumn("{task.fields[details]}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
                expand=True,
                console=self.console,
                speed_estimate_period=SAMPLE_SECONDS,
            )
            self.bars.start()
        return self.bars

    def close(self) -> None:
        """Stop all bars. They stay on the screen, and the next counter creates new ones."""
        if self.bars is not None:
            self.bars.stop()
        self.bars, self.tasks, self.began, self.printed = None, {}, {}, 0.0


report = Reporter(progress)


def set_verbosity(*, quiet: bool, verbose: bool) -> None:
    """Set what stderr shows from now on. `quiet` shows only errors; `verbose` shows every row as a line."""
    report.quiet, report.verbose, progress.quiet = quiet, verbose, quiet


def title(key: str, row: Row) -> str:
    """What the counter `key` of a row counts, in words: all texts of the row except the counter."""
    return " ".join(str(value) for value in row.values() if isinstance(value, str | Path) and value != row[key])


def counter_key(row: Row) -> str | None:
    """The first key whose value is a counter, such as "3/30"."""
    return next((key for key, value in row.items() if isinstance(value, str) and COUNTER.fullmatch(value)), None)


def pairs(row: Row) -> str:
    """The keys and values of a row as one line, with rich's markup."""
    (shown,) = visible([row])
    return "  ".join(f"[dim]{label(key)}[/dim] {escape(text)}" for key, text in texts(shown).items())


def emit(rows: Sequence[Mapping[str, Any]] | Mapping[str, Any], *, as_json: bool, title: str | None = None) -> None:
    """Print the result as JSON, or as a table with labels and units. The table leaves out nested values."""
    report.close()
    if as_json:
        click.echo(json.dumps(rows, indent=2, ensure_ascii=False, default=str))
        return
    rows = [rows] if isinstance(rows, Mapping) else list(rows)
    flat = [{k: v for k, v in row.items() if not isinstance(v, dict | list)} for row in visible(rows)]
    if len(flat) == 1:
        print_facts(flat[0])
    else:
        print_table(flat, title)


def print_facts(row: Row) -> None:
    """Print one row: each line has a label and a value."""
    shown = texts(row)
    width = max((len(label(key)) for key in shown), default=0)
    for key, text in shown.items():
        results.print(f"{label(key):<{width}}  {text}", markup=False)


def print_table(rows: list[Row], title: str | None) -> None:
    """Print several rows as a table with a column per key, or as blocks of lines if the terminal is too narrow."""
    table = Table(title=title, box=None, header_style="bold")
    lines = [texts(row) for row in rows]
    columns = list(dict.fromkeys(key for line in lines for key in line))
    for key in columns:
        words = all(isinstance(row[key], str) and not row[key][:1].isdigit() for row in rows if key in row)
        table.add_column(label(key), justify="left" if words else "right")
    for line in lines:
        table.add_row(*[escape(line.get(key, "")) for key in columns])
    if not results.is_terminal:
        unfolded.print(table)
    elif unfolded.measure(table).maximum <= results.width:
        results.print(table)
    else:
        print_blocks(rows, title)


def print_blocks(rows: list[Row], title: str | None) -> None:
    """Print each row as lines of labels and values. An empty line separates rows."""
    if title:
        results.print(title, markup=False)
    for row in rows:
        results.print()
        print_facts(row)


def print_written(path: Path | str, *facts: str, next_command: str | None = None, as_json: bool = False) -> None:
    """Print the closing line of a job: output, facts in brackets, next command. With --json, print nothing."""
    report.close()
    if as_json:
        return
    about = f" ({', '.join(facts)})" if facts else ""
    results.print(f"Wrote {path}{about}." + (f" Next: {next_command}" if next_command else ""), markup=False)


def size_fact(count: int, reference: int | None = None) -> str:
    """A size, and its share of the size in FP16: "1.17 GB, 38 % of FP16"."""
    return format_bytes(count) + (f", {100 * count / reference:.0f} % of FP16" if reference else "")
