"""qcompress eval: score checkpoints on tasks, and compute each candidate's share of the reference's score."""

from pathlib import Path
from typing import Any

import click

from compress.cli.console import emit, report
from compress.cli.history import append_history, check_history_options, history_options
from compress.cli.model_path import MODEL, OutPath
from compress.cli.options import Command, json_option, make_settings, restart_option, settings_options, shared_option
from compress.core.proportion import ENOUGH
from compress.evaluate.tasks.settings import OUT, RuntimeSettings, TaskSettings

Row = dict[str, Any]


@click.command("eval", cls=Command)
@click.argument("checkpoints", metavar="CKPT...", nargs=-1, required=True, type=MODEL)
@shared_option(
    "--reference",
    group="Essentials",
    type=MODEL,
    required=True,
    help="Checkpoint whose score counts as 100 % retention, usually the 16-bit one.",
)
@shared_option(
    "-o",
    "--out",
    group="Essentials",
    type=OutPath(file_okay=False, path_type=Path),
    help="Folder for answers and scores. An interrupted run resumes from it.",
    show_default=str(OUT),
)
@settings_options(TaskSettings, RuntimeSettings)
@restart_option
@history_options
@json_option
def command(
    checkpoints: tuple[Path, ...],
    reference: Path,
    out: Path | None,
    restart: bool,
    history: Path | None,
    tag: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Score each CKPT and the reference on the same tasks: questions, Python, mathematics, JSON, conversations.

    Retention is the candidate's score over the reference's. Its 95 % interval is valid for few items too.
    Retention is n/a if the reference scores 0. Answers are greedy. Generated Python runs in a sandbox.

    \b
    qcompress eval smollm2-awq smollm2-gptq --reference smollm2 --min-retention 85
    qcompress eval student --reference teacher --kind math --limit 10 --json
    qcompress eval qwen-awq --reference qwen --tasks gsm8k,humaneval --task-data benchmarks --limit 50
    """
    from compress.evaluate.tasks.job import check_retention, lm_eval_rows, suite_rows

    check_history_options(history, tag)
    tasks, runtime = make_settings(TaskSettings, options), make_settings(RuntimeSettings, options)
    check_options(tasks, out, restart)
    if tasks.tasks is None:
        folder = out or OUT
        rows = suite_rows(reference, checkpoints, tasks, runtime, folder, restart=restart, report=report)
        report({"answers and scores": folder})
    else:
        rows = lm_eval_rows(reference, checkpoints, tasks, runtime, report)
    emit(rows if as_json else [columns(row) for row in rows], as_json=as_json, title=f"suite {rows[0]['suite']}")
    append_history(history, tag, "eval", rows)
    if tasks.min_retention is not None:
        check_retention(rows, tasks.min_retention)


def check_options(tasks: TaskSettings, out: Path | None, restart: bool) -> None:
    """Raises UsageError if options of a suite are used with --tasks, or --task-data without --tasks."""
    if tasks.tasks is None and tasks.task_data:
        raise click.UsageError("--task-data needs --tasks")
    if tasks.tasks is not None and (tasks.kind or tasks.suite or out or restart):
        raise click.UsageError(
            "--tasks runs lm-eval, so it excludes the options of a suite: --kind, --suite, --out and --restart"
        )


def columns(row: Row) -> Row:
    """A row for the terminal. Scores are 0 to 100, as in `watch` and `history`."""
    candidate, few = row["role"] == "candidate", row["items"] < ENOUGH
    return {
        "name": row["name"],
        "kind": row["kind"],
        "items": row["items"],
        "errors": row["errors"] or None,
        "empty": row["empty"] or None,
        "score (0 to 100)": points(row["score"]),
        "95 % interval of score": interval(row, "score", 100),
        "retention": percent(row["retention"]) if candidate else None,
        "95 % interval": interval(row, "retention", 1, " %") if candidate else None,
        "note": "too few items to tell" if candidate and few else None,
    }


def points(score: float | None) -> str:
    return "n/a" if score is None else f"{100 * score:.1f}"


def percent(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.0f} %"


def interval(row: Row, key: str, scale: float, unit: str = "") -> str | None:
    """The interval of a figure as text, or None if the figure has no interval."""
    low, high = row[f"{key}_low"], row[f"{key}_high"]
    return None if low is None else f"{scale * low:.0f} to {scale * high:.0f}{unit}"
