"""qcompress check: will vLLM load this checkpoint, and compute what was measured?"""

from collections import Counter
from itertools import groupby
from pathlib import Path
from typing import Any

import click

from compress.cli.console import emit, json_option, progress, results
from compress.cli.history import history_options, keep_verdicts, need_history
from compress.core.errors import GateFailure, QCompressError

SHOWN = 8  # rows per rule; a systematic mistake breaks a rule once per linear


@click.command("check")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--tp", type=click.IntRange(min=1), default=1, show_default=True, help="Ranks that will share the model.")
@click.option(
    "--source", type=click.Path(path_type=Path), help="The plain checkpoint it was made from; compares the weights."
)
@history_options
@json_option
def command(
    directory: Path, tp: int, source: Path | None, history: Path | None, tag: str | None, as_json: bool
) -> None:
    """Check that vLLM loads DIRECTORY, and that nothing in it loads wrong in silence.

    Plain and quantized checkpoints (awq, gptq, compressed-tensors), ours or anyone's. One line per broken rule: what
    was found and expected, what vLLM would do. Ends with 0 when there are warnings at most, with 3 on any error.

    \b
    qcompress check smollm2-awq
    qcompress check qwen-gptq --tp 2 --source qwen
    """
    from compress.checkpoint.check.run import check_checkpoint
    from compress.checkpoint.record import DIGESTS

    need_history(history, tag)
    rows = check_checkpoint(directory, tp=tp, source=source)
    errors = sum(row["level"] == "error" for row in rows)
    if history:
        keep_verdicts(history, tag, "check", [verdict(directory, rows)])
    if as_json:
        emit(rows, as_json=True)
    else:
        for line in lines(rows):
            results.print(line, markup=False)
    if not (directory / DIGESTS).is_file():
        progress.print(f"{directory}: has no {DIGESTS}, so a changed code or scale cannot be seen", markup=False)
    if errors:
        told = f"{counted(errors, 'error')}, {counted(len(rows) - errors, 'warning')}"
        raise GateFailure(f"{directory}: {told}; loaders would stop, or compute wrong text")
    if not as_json:
        results.print(f"{directory}: no errors, {counted(len(rows), 'warning')}", markup=False)


def verdict(directory: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The history's row: whether it passed, and which rules were broken how often."""

    from compress.checkpoint.read import Checkpoint

    try:
        known = Checkpoint(directory).digest
    except (OSError, QCompressError):  # so broken that it has no files to digest
        known = "none"
    levels = {level: Counter(row["rule"] for row in rows if row["level"] == level) for level in ("error", "warning")}
    counts = {f"{level}s": dict(rules) for level, rules in levels.items()}
    return {"name": directory.resolve().name, "digest": known, "passed": not levels["error"], **counts}


def lines(rows: list[dict[str, Any]]) -> list[str]:
    """One line per row, at most SHOWN of a rule and level in a run."""
    shown = []
    for (rule, level), found in groupby(rows, lambda row: (row["rule"], row["level"])):
        found_rows = list(found)
        for row in found_rows[:SHOWN]:
            where = next((str(row[key]) for key in ("tensor", "key", "file") if key in row), "")
            value = f"{row['value']} (expected: {row['expected']})"
            shown.append(f"{level:<7}  {rule:<3}  {where}: {value}: {row['consequence']}")
        if len(found_rows) > SHOWN:
            shown.append(f"{level:<7}  {rule:<3}  and {len(found_rows) - SHOWN} more like these; --json shows all")
    return shown


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
