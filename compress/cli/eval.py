"""qcompress eval: what a candidate still can do, against its reference."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from compress.cli.compare import with_error
from compress.cli.console import emit, json_option, report
from compress.cli.history import history_options, keep_verdicts, need_history
from compress.core.errors import GateFailure, QCompressError

Row = dict[str, Any]
KIND_NAMES = ("qa", "python", "math", "json", "multi-turn")
OUT = Path("build/eval")
CURE = "quantize with another method, a smaller group size or more calibration text, or lower --min-retention"


@click.command("eval")
@click.argument("checkpoints", metavar="CKPT...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--reference", type=click.Path(path_type=Path), required=True, help="The checkpoint to measure against.")
@click.option("--kind", "kinds", multiple=True, type=click.Choice(KIND_NAMES), help="Only this kind; may be repeated.")
@click.option("--suite", type=click.Path(path_type=Path), help="A task file of your own, .jsonl; else the bundled one.")
@click.option("--limit", type=click.IntRange(1), help="At most this many items of each kind, spread over the kind.")
@click.option("--tasks", help="Instead of a suite: benchmarks of lm-eval, such as gsm8k,humaneval.")
@click.option("--data", type=click.Path(path_type=Path), help="With --tasks: a folder with their data; else the hub.")
@click.option("--min-retention", type=click.FloatRange(min=0), help="Least retention of every kind, in %.")
@click.option("--batch", type=click.IntRange(1), default=8, show_default=True, help="Items asked at a time.")
@click.option(
    "--engine",
    type=click.Choice(["transformers", "vllm"]),
    default="transformers",
    show_default=True,
    help="transformers: float32, packed weights dequantized. vllm: as it will be served.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help=f"Where answers and scores are kept; an interrupted run goes on from there.  [default: {OUT}]",
)
@history_options
@json_option
def command(
    checkpoints: tuple[Path, ...],
    reference: Path,
    kinds: tuple[str, ...],
    suite: Path | None,
    limit: int | None,
    tasks: str | None,
    data: Path | None,
    min_retention: float | None,
    batch: int,
    engine: str,
    out: Path | None,
    history: Path | None,
    tag: str | None,
    as_json: bool,
) -> None:
    """Let each CKPT and the reference solve the same tasks: question answering, Python, mathematics, JSON, multi-turn.

    Retention is the candidate's score over the reference's, with a 95 % interval from redrawing the items; n/a where
    the reference solves nothing. Answers are greedy. Generated Python runs in a sandbox. Ends with exit code 3 when a
    kind keeps less than --min-retention.

    \b
    qcompress eval smollm2-awq smollm2-gptq --reference smollm2 --min-retention 85
    qcompress eval student --reference teacher --kind math --limit 10 --json
    qcompress eval qwen-awq --reference qwen --tasks gsm8k,humaneval --data benchmarks --limit 50
    """
    need_history(history, tag)
    if tasks is None:
        if data:
            raise click.UsageError("--data goes with --tasks only")
        rows = solve_suite(reference, checkpoints, kinds, suite, limit, batch, engine, out or OUT)
    else:
        if kinds or suite or out:
            raise click.UsageError("--tasks goes without --kind, --suite and --out: lm-eval keeps no answers")
        rows = solve_benchmarks(reference, checkpoints, tasks.split(","), data, limit, batch, engine)
    emit(rows if as_json else [shown(row) for row in rows], as_json=as_json, title=f"suite {rows[0]['suite']}")
    keep_verdicts(history, tag, "eval", rows)
    if min_retention is not None:
        refuse_losses(rows, min_retention)


def solve_suite(
    reference: Path,
    checkpoints: tuple[Path, ...],
    kinds: tuple[str, ...],
    suite: Path | None,
    limit: int | None,
    batch: int,
    engine: str,
    out: Path,
) -> list[Row]:
    """The rows of a suite, with progress on stderr."""
    from compress.evaluate.tasks.runner import Asking, retention_rows
    from compress.evaluate.tasks.suite import load_suite, select

    loaded = load_suite(suite)
    items = select(loaded, kinds, limit)
    tell_containment(any(item.kind == "python" for item in items))
    dtype, open_engine = engines()[engine]
    settings = {"engine": engine, "dtype": dtype, "decoding": "greedy"}
    asking = Asking(loaded, items, out, settings, batch, open_engine)
    try:
        with vllm_errors():
            rows = retention_rows(reference, checkpoints, asking, report_items)
    except KeyboardInterrupt:
        report({"interrupted": "the same command goes on from the answers that are there", "answers": out})
        raise
    report({"answers and scores": out})
    return rows


def solve_benchmarks(
    reference: Path,
    checkpoints: tuple[Path, ...],
    tasks: list[str],
    data: Path | None,
    limit: int | None,
    batch: int,
    engine: str,
) -> list[Row]:
    """The rows of benchmarks; lm-eval shows its own progress on stderr."""
    from compress.evaluate.tasks.benchmarks import benchmark_rows, transformers_model
    from compress.runtimes.vllm_lm_eval import vllm_model

    tell_containment("humaneval" in tasks)
    how: dict[str, Any] = {"data": data, "limit": limit, "batch": batch, "report": report, "engine": engine}
    open_model = {"transformers": transformers_model, "vllm": vllm_model}[engine]
    with vllm_errors():
        return benchmark_rows(reference, checkpoints, tasks, **how, open_model=open_model)


def engines() -> dict[str, tuple[str, Any]]:
    """By name: the dtype it computes in, and what opens it."""
    from compress.runtimes.transformers_generate import transformers_engine
    from compress.runtimes.vllm_process import vllm_engine

    return {"transformers": ("float32", transformers_engine), "vllm": ("of the checkpoint", vllm_engine)}


@contextmanager
def vllm_errors() -> Iterator[None]:
    """vLLM's end as one line."""
    from compress.runtimes.vllm_offline import VllmFailedError

    try:
        yield
    except VllmFailedError as error:
        raise QCompressError(f"vLLM ended: {error}; take --engine transformers") from error


def tell_containment(runs_code: bool) -> None:
    """What contains generated code on this machine, before any of it runs. QCompressError where nothing can."""
    from compress.sandbox.run import SandboxError, containment

    if runs_code:
        try:
            report({"sandbox": "", **containment()})
        except SandboxError as error:
            raise QCompressError(f"{error}; leave python out with --kind") from error


def report_items(name: str, done: int, total: int) -> None:
    """Progress of one checkpoint: `done` of `total` items are answered."""
    report({"checkpoint": name, "items": f"{done}/{total}"})


def shown(row: Row) -> Row:
    """A report row as the terminal shows it."""
    candidate = row["role"] == "candidate"
    return {
        "name": row["name"],
        "kind": row["kind"],
        "items": row["items"],
        "errors": row["errors"] or None,
        "empty": row["empty"] or None,
        "score": with_error(row, "score", 2) if row["score"] is not None else "n/a",
        "retention": (percent(row["retention"]) if candidate else None),
        "95 % interval": interval(row) if candidate else None,
    }


def percent(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.0f} %"


def interval(row: Row) -> str | None:
    low, high = row["retention_low"], row["retention_high"]
    return None if low is None else f"{low:.0f} to {high:.0f} %"


def refuse_losses(rows: list[Row], minimum: float) -> None:
    """GateFailure that names every candidate and kind below `minimum`, or one of which no kind can be judged."""
    judged = [row for row in rows if row["role"] == "candidate" and row["retention"] is not None]
    if unknown := {row["name"] for row in rows if row["role"] == "candidate"} - {row["name"] for row in judged}:
        raise GateFailure(f"{min(unknown)}: no kind could be judged, {why_unjudged(rows)}")
    fallen = [row for row in judged if row["kind"] != "all" and row["retention"] < minimum]
    if fallen:
        told = "; ".join(f"{row['name']}: {row['kind']} keeps {row['retention']:.1f} %" for row in fallen)
        raise GateFailure(f"{told}, less than {minimum:g} %; {CURE}")


def why_unjudged(rows: list[Row]) -> str:
    """Why there is no retention at all: scorers failed, or the reference has no score to keep."""
    errors = sum(row["errors"] for row in rows if row["kind"] != "all")
    if errors and not any(row["items"] for row in rows):
        return f"scorers failed on all {errors} answers; the reasons are in the folder of --out"
    return "the reference solves none of the tasks"
