"""qcompress watch: measure whether a checkpoint got worse since its baseline."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compress.cli.console import emit, progress, report
from compress.cli.model_path import MODEL
from compress.cli.options import Command, json_option, make_settings, settings_options, shared_option
from compress.evaluate.drift.cells import with_error
from compress.evaluate.history.settings import WatchSettings

if TYPE_CHECKING:
    from compress.core.rows import ChangeRow

FORCE = "Measure again with --force."
DIGITS = {"points": 1, "nats": 4, "%": 2}


@click.command("watch", cls=Command)
@click.argument("checkpoint", metavar="CKPT", type=MODEL)
@shared_option(
    "--history",
    group="Essentials",
    type=click.Path(path_type=Path),
    required=True,
    help="History with the baseline; the new verdicts are appended to it.",
)
@settings_options(WatchSettings)
@shared_option("--tag", group="Report", help="Label of the new verdicts in the history.")
@shared_option(
    "--force", group="Run control", is_flag=True, help="Measure again even if the same files were measured before."
)
@json_option
def command(checkpoint: Path, history: Path, tag: str | None, force: bool, as_json: bool, **options: Any) -> None:
    """Repeat a baseline's measurements on CKPT and compare item by item. Exit code 3 if a result got worse.

    The baseline is the verdicts that eval, verify or compare stored under TAG. Items, text and runtime must be the
    same; if not, an error names the difference. A kind of task got worse if the 95 % interval of its change is below 0.
    A drop of more than --max-drop points also counts. If files, text, tasks, limits and software are those of an
    earlier measurement, its result is printed at once.

    \b
    qcompress eval smollm2-awq --reference smollm2 --history verdicts.sqlite --tag v1
    qcompress verify smollm2 smollm2-awq --history verdicts.sqlite --tag v1
    qcompress watch smollm2-awq --baseline v1 --history verdicts.sqlite --reference smollm2
    """
    from compress.evaluate.history.falls import check_falls
    from compress.evaluate.history.unchanged import prepare_watch

    settings = make_settings(WatchSettings, options)
    run = prepare_watch(checkpoint, history, settings)
    unchanged = None if force else run.unchanged()
    if unchanged is None:
        from compress.evaluate.history.job import watch_checkpoint

        rows = watch_checkpoint(run, tag=tag, report=report)
    else:
        rows, since = unchanged
        run.store_unchanged(rows, tag)
        progress.print(f"Nothing was measured: files, text, tasks, limits and software are those of {since}. {FORCE}")
    show_rows(rows, settings.baseline, as_json=as_json)
    check_falls(rows, settings.baseline)


def show_rows(rows: Sequence["ChangeRow"], tag: str, *, as_json: bool) -> None:
    """Print the changes as JSON or as a table."""
    shown = [dict(row) if as_json else terminal_row(row) for row in rows]
    emit(shown, as_json=as_json, title=f"changes since {tag}")


def fell(row: "ChangeRow") -> bool | str:
    """Whether a figure got worse, or the text "too few items to tell" if the items allow no verdict."""
    return "too few items to tell" if row["too_few"] and not row["fell"] else row["fell"]


def terminal_row(row: "ChangeRow") -> dict[str, object]:
    """A change as a row of the terminal's table."""
    from compress.evaluate.history.falls import format_change

    digits = DIGITS[row["unit"]]
    low, high = row["change_low"], row["change_high"]
    return {
        "kind": "KL" if row["kind"] == "kl" else row["kind"],
        "items": row["items"] or None,
        "scored tokens": row["tokens"],
        "before": None if row["before"] is None else with_error(row["before"], row["before_se"], digits),
        "now": None if row["now"] is None else with_error(row["now"], row["now_se"], digits),
        "change": format_change(row),
        "95 % interval": None if low is None else f"{low:+.{digits}f} to {high:+.{digits}f}",
        "fell": fell(row),
    }
