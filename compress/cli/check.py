"""qcompress check: test a checkpoint against the rules of vLLM and other loaders."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compress.checkpoint.check.loaders import RUNTIMES
from compress.cli.console import emit, progress, results
from compress.cli.history import append_history, check_history_options, history_options
from compress.cli.model_path import MODEL
from compress.cli.options import Command, json_option, shared_option
from compress.core.errors import GateFailure, QCompressError

if TYPE_CHECKING:
    from compress.checkpoint.read import Checkpoint


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
    "--runs-in",
    group="Essentials",
    type=click.Choice(RUNTIMES),
    default=RUNTIMES[0],
    show_default=True,
    help="Runtime whose rules apply.",
)
@shared_option(
    "--source",
    group="Essentials",
    type=MODEL,
    help="16-bit checkpoint to compare weights, config.json and tokenizer with. "
    "[default: the source named in qcompress.json, if it still exists unchanged]",
)
@history_options
@json_option
def command(
    checkpoint: Path,
    tensor_parallel_size: int,
    runs_in: str,
    source: Path | None,
    history: Path | None,
    tag: str | None,
    as_json: bool,
) -> None:
    """Check that vLLM, or another runtime, can load CKPT and that every loader reads the same weights.

    CKPT may be unquantized, awq, gptq or compressed-tensors, written by qcompress or by another tool. Prints one line
    per kind of finding: the value, the expected value, and what vLLM does with it. After the findings, it prints what
    was compared. The exit code is 3 if there is an error, and 0 if there are only warnings.

    \b
    qcompress check smollm2-awq
    qcompress check qwen-gptq --tensor-parallel-size 2 --source qwen
    qcompress check qwen-gptq --runs-in mlx
    """
    from compress.checkpoint.check.run import check_checkpoint

    check_history_options(history, tag)
    opened = open_readable(checkpoint)
    compared: list[str] = []
    rows = check_checkpoint(
        opened or checkpoint,
        tensor_parallel_size=tensor_parallel_size,
        source=source,
        runs_in=runs_in,
        report=lambda row: compared.append(row["compared"]),
    )
    if history:
        append_history(history, tag, "check", [verdict(checkpoint, opened, rows)])
    if as_json:
        emit(rows, as_json=True)
    else:
        for line in format_rows(rows):
            results.print(line, markup=False)
    for sentence in compared:
        (progress if as_json else results).print(f"compared {sentence}", markup=False)
    errors = sum(row["level"] == "error" for row in rows)
    warnings = count_text(len(rows) - errors, "warning")
    if errors:
        message = f"{count_text(errors, 'error')}, {warnings}"
        raise GateFailure(f"{checkpoint}: {message}; {advice(rows, runs_in)}")
    if not as_json:
        results.print(f"{checkpoint}: no errors, {warnings}", markup=False)


def advice(rows: list[dict[str, Any]], runs_in: str) -> str:
    """The consequence of errors, and what to do: the first cure, unless other errors show damage."""
    errors = [row for row in rows if row["level"] == "error"]
    cures = [row["cure"] for row in errors if "cure" in row]
    if cures and all(row["rule"].startswith("R") for row in errors):
        return f"{runs_in} cannot read it: {cures[0]}"
    return "loaders would fail or generate wrong text; write the checkpoint again"


def open_readable(path: Path) -> "Checkpoint | None":
    """The opened checkpoint, or None if its files are unreadable. `check_checkpoint` reports the reason."""
    from compress.checkpoint.read import Checkpoint

    try:
        return Checkpoint(path)
    except (OSError, QCompressError):
        return None


def verdict(path: Path, checkpoint: "Checkpoint | None", rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The row for the history: name, digest, `passed`, and counts by rule. Unreadable files have digest "none"."""
    from compress.checkpoint.hub import model_name

    digest = checkpoint.digest if checkpoint else "none"
    levels = {level: Counter(row["rule"] for row in rows if row["level"] == level) for level in ("error", "warning")}
    counts = {f"{level}s": dict(rules) for level, rules in levels.items()}
    return {"name": model_name(path), "digest": digest, "passed": not levels["error"], **counts}


def format_rows(rows: list[dict[str, Any]]) -> list[str]:
    """One line per group of equal findings: the first finding, and the number of the others."""
    lines = []
    for same in group_equal(rows):
        row = same[0]
        where = next((str(row[key]) for key in ("tensor", "key", "file") if key in row), "")
        more = f" (and {len(same) - 1} more; --json lists all)" if len(same) > 1 else ""
        value = f"{row['value']} (expected: {row['expected']})"
        lines.append(f"{row['level']:<7}  {row['rule']:<3}  {where}: {value}: {row['consequence']}{more}")
    return lines


def group_equal(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The rows in groups of equal rule, level and consequence. Groups are in the order of their first rows."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["rule"], row["level"], row["consequence"]), []).append(row)
    return list(groups.values())


def count_text(number: int, noun: str) -> str:
    """A number and its noun, such as "1 error" or "2 errors"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
