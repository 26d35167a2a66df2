"""qcompress compare: compare checkpoints with one reference, in the terminal or in an HTML report."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from compress.cli.console import emit, print_written, progress, report
from compress.cli.history import append_history, check_history_options, history_options
from compress.cli.model_path import MODEL
from compress.cli.options import Command, json_option, make_settings, settings_options, shared_option
from compress.core.errors import QCompressError
from compress.core.file_kind import REPORT
from compress.core.lock import output_lock
from compress.core.rows import CompareRow
from compress.evaluate.drift.cells import terminal_block, terminal_row
from compress.evaluate.drift.limits import check_verdicts, format_outliers
from compress.evaluate.drift.settings import CompareLimits, DriftSettings, ReportSettings


@click.command("compare", cls=Command)
@click.argument("reference", type=MODEL)
@click.argument("checkpoints", metavar="CKPT...", nargs=-1, required=True, type=MODEL)
@shared_option(
    "--teacher",
    group="Essentials",
    type=MODEL,
    help="Model from which REFERENCE was distilled. Adds each checkpoint's distance from this model.",
)
@settings_options(DriftSettings, CompareLimits, ReportSettings)
@history_options
@json_option
def command(
    reference: Path,
    checkpoints: tuple[Path, ...],
    teacher: Path | None,
    history: Path | None,
    tag: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Compare each CKPT with REFERENCE: size, perplexity, KL divergence, agreement. Exit code 3 if a limit is broken.

    All checkpoints read the same evaluation windows. ± is one standard error, from resampling windows. KL is
    KL(reference ‖ candidate) in nats per token. Top-5 agreement is the share of positions where the candidate's top 5
    contain the reference's most likely token. A report is written even if a limit is broken.

    \b
    qcompress compare smollm2 smollm2-awq smollm2-gptq
    qcompress compare student student-awq --teacher smollm2
    qcompress compare qwen qwen-awq --eval-text notes.txt --samples 64 --html report.html
    qcompress compare smollm2 smollm2-awq --html report.html --eval build/eval --bench bench.json --max-size 100MB
    """
    from compress.evaluate.report.job import compare_checkpoints, store_report

    check_history_options(history, tag)
    limits, page = make_settings(CompareLimits, options), make_settings(ReportSettings, options)
    check_options(limits, page)
    drift = make_settings(DriftSettings, options)
    if page.html:
        click.get_current_context().with_resource(output_lock(page.html))
    comparison = compare_checkpoints((reference, *checkpoints), drift, limits, page, report, teacher=teacher)
    rows = comparison.rows
    append_history(history, tag, "compare", [{**row, "reference_digest": rows[0]["digest"]} for row in rows])
    if as_json:
        emit([dict(row) for row in comparison.all_rows], as_json=True)
    else:
        show_rows(comparison.all_rows)
    if page.html:
        store_report(page.html, comparison, history, shlex.join(["qcompress", *sys.argv[1:]]), report)
        print_written(page.html, next_command="open the report in a browser", as_json=as_json)
    check_verdicts(rows)


def check_options(limits: CompareLimits, page: ReportSettings) -> None:
    """Raises UsageError if an option needs another option that is missing.

    Raises QCompressError if the report cannot be written.
    """
    if limits.min_retention is not None and not page.eval:
        raise click.UsageError("--min-retention needs --eval")
    if page.html is None:
        needs_html = {
            "--eval": page.eval if limits.min_retention is None else None,
            "--bench": page.bench,
            "--answers": page.answers,
        }
        if option := next((name for name, value in needs_html.items() if value), None):
            raise click.UsageError(f"{option} needs --html")
    elif not page.html.absolute().parent.is_dir():
        raise QCompressError(f"{page.html}: the folder {page.html.absolute().parent} does not exist; create it first")
    else:
        REPORT.check(page.html)


def show_rows(rows: Sequence[CompareRow]) -> None:
    """Print the table of checkpoints. With --locate, a table of blocks follows for each candidate."""
    emit([terminal_row(row) for row in rows], as_json=False)
    for row in rows:
        if row.get("blocks"):
            emit([terminal_block(block) for block in row["blocks"]], as_json=False, title=row["name"])
            progress.print(f"{row['name']}: {format_outliers(row) or 'no block is an outlier'}", markup=False)
