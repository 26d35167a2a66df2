"""qcompress check: the rules that a checkpoint must keep for vLLM and other loaders."""

from collections import Counter
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compress.cli.console import emit, progress, results
from compress.cli.history import append_history, check_history_options, history_options
from compress.cli.model_path import MODEL
from compress.cli.options import Command, json_option, shared_option
from compress.core.errors import GateFailure, QCompressError

if TYPE_CHECKING:
    from compress.checkpoint.read import Checkpoint

ROWS_PER_RULE = 8  # a systematic mistake breaks a rule once per linear


@click.command("check", cls=Command)
@click.argument("checkpoint", metavar="CKPT", type=MODEL)
@shared_option(
    "--tensor-parallel-size",
    group="Essentials",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Number of GPUs that will share the model, as for `vllm serve`.",
)
@shared_option(
    "--source",
    group="Essentials",
    type=MODEL,
    help="16-bit checkpoint to compare the packed weights with. "
    "[default: the source named in qcompress.json, if it still exists unchanged]",
)
@history_options
@json_option
def command(
    checkpoint: Path,
    tensor_parallel_size: int,
    source: Path | None,
    history: Path | None,
    tag: str | None,
    as_json: bool,
) -> None:
    """Check that vLLM can load CKPT and that every loader reads the same weights.

    CKPT may be unquantized, awq, gptq or compressed-tensors, written by qcompress or by another tool. Prints one line
    per broken rule: the value, the expected value, and what vLLM does with it. The exit code is 3 if there is an error,
    and 0 if there are only warnings.

    \b
    qcompress check smollm2-awq
    qcompress check qwen-gptq --tensor-parallel-size 2 --source qwen
    """
    from compress.checkpoint.check.run import check_checkpoint
    from compress.checkpoint.record import DIGESTS

    check_history_options(history, tag)
    opened = open_readable(checkpoint)
    rows = check_checkpoint(opened or checkpoint, tensor_parallel_size=tensor_parallel_size, source=source)
    if history:
        append_history(history, tag, "check", [verdict(checkpoint, opened, rows)])
    if as_json:
        emit(rows, as_json=True)
    else:
        for line in format_rows(rows):
            results.print(line, markup=False)
    if not (checkpoint / DIGESTS).is_file():
        progress.print(f"{checkpoint}: has no {DIGESTS}, so changed tensors cannot be detected", markup=False)
    errors = sum(row["level"] == "error" for row in rows)
    warnings = count_text(len(rows) - errors, "warning")
    if errors:
        message = f"{count_text(errors, 'error')}, {warnings}"
        raise GateFailure(
            f"{checkpoint}: {message}; loaders would fail or generate wrong text; write the checkpoint again"
        )
    if not as_json:
        results.print(f"{checkpoint}: no errors, {warnings}", markup=False)


def open_readable(path: Path) -> "Checkpoint | None":
    """The open checkpoint; None if its files are unreadable, which `check_checkpoint` reports."""
    from compress.checkpoint.read import Checkpoint

    try:
        return Checkpoint(path)
    except (OSError, QCompressError):
        return None


def verdict(path: Path, checkpoint: "Checkpoint | None", rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The row for the history: name, digest ("none" for unreadable files), `passed`, and counts by rule."""
    from compress.checkpoint.hub import model_name

    digest = checkpoint.digest if checkpoint else "none"
    levels = {level: Counter(row["rule"] for row in rows if row["level"] == level) for level in ("error", "warning")}
    counts = {f"{level}s": dict(rules) for level, rules in levels.items()}
    return {"name": model_name(path), "digest": digest, "passed": not levels["error"], **counts}


def format_rows(rows: list[dict[str, Any]]) -> list[str]:
    """One line per row, at most ROWS_PER_RULE for consecutive rows of one rule and level."""
    lines = []
    for (rule, level), group in groupby(rows, lambda row: (row["rule"], row["level"])):
        same_rule = list(group)
        for row in same_rule[:ROWS_PER_RULE]:
            where = next((str(row[key]) for key in ("tensor", "key", "file") if key in row), "")
            value = f"{row['value']} (expected: {row['expected']})"
            lines.append(f"{level:<7}  {rule:<3}  {where}: {value}: {row['consequence']}")
        if len(same_rule) > ROWS_PER_RULE:
            lines.append(f"{level:<7}  {rule:<3}  and {len(same_rule) - ROWS_PER_RULE} more; --json lists all")
    return lines


def count_text(number: int, noun: str) -> str:
    """For example "1 error" or "2 errors"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
