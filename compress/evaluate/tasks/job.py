"""The job of `qcompress eval`: run a suite or benchmarks on all checkpoints, and check the retention limit."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from compress.checkpoint.read import Checkpoint
from compress.core.errors import GateFailure, QCompressError
from compress.core.interrupt import RESUME, on_interrupt
from compress.core.lock import output_lock
from compress.evaluate.drift.limits import format_retention
from compress.evaluate.tasks.benchmarks import benchmark_rows, transformers_model
from compress.evaluate.tasks.runner import OpenRuntime, TaskRun, retention_rows
from compress.evaluate.tasks.settings import RuntimeSettings, TaskSettings
from compress.evaluate.tasks.suite import load_suite, select
from compress.runtimes.protocol import Runtime, open_runtime, pick_runtime
from compress.runtimes.vllm_lm_eval import vllm_model
from compress.sandbox.run import SandboxError, containment

Row = dict[str, Any]
Report = Callable[[Row], None]
CURE = "quantize with another method, a smaller group size or more calibration text, or lower --min-retention"


def suite_rows(
    reference: Path,
    candidates: Sequence[Path],
    tasks: TaskSettings,
    runtime: RuntimeSettings,
    out: Path,
    *,
    restart: bool = False,
    report: Report = lambda row: None,
) -> list[Row]:
    """Run a suite on all checkpoints; returns their rows. `out` stores answers, so an interrupted run resumes."""
    suite = load_suite(tasks.suite)
    items = select(suite, tasks.kind, tasks.limit)
    if any(item.kind == "python" for item in items):
        check_sandbox(report)
    name, dtype = runtime_and_dtype(runtime)
    run = TaskRun(
        suite,
        items,
        out,
        settings={"runtime": name, "dtype": dtype, "decoding": "greedy"},
        batch_size=runtime.batch_size,
        open_runtime=runtime_opener(name, dtype, runtime.device),
        restart=restart,
    )
    with output_lock(out), on_interrupt(lambda: f"stored answers are kept in {out}; {RESUME}"):
        return retention_rows(reference, candidates, run, report)


def lm_eval_rows(
    reference: Path,
    candidates: Sequence[Path],
    tasks: TaskSettings,
    runtime: RuntimeSettings,
    report: Report = lambda row: None,
) -> list[Row]:
    """Run lm-eval benchmarks on all checkpoints; returns their rows. lm-eval prints its progress on stderr."""
    names = (tasks.tasks or "").split(",")
    if "humaneval" in names:
        check_sandbox(report)
    name, dtype = runtime_and_dtype(runtime)
    models: dict[str, Any] = {"transformers": partial(transformers_model, device=runtime.device), "vllm": vllm_model}
    return benchmark_rows(
        reference,
        candidates,
        names,
        task_data=tasks.task_data,
        limit=tasks.limit,
        batch_size=runtime.batch_size,
        runtime=name,
        open_model=partial(models[name], dtype=dtype),
        report=report,
    )


def runtime_and_dtype(settings: RuntimeSettings) -> tuple[str, str]:
    """The runtime's name, and the dtype: by default float32 in transformers, the checkpoint's dtype in vLLM."""
    name = pick_runtime(settings.runtime, settings.device)
    return name, settings.dtype or {"transformers": "float32", "vllm": "auto"}[name]


def runtime_opener(name: str, dtype: str, device: str = "auto") -> OpenRuntime:
    """A function that opens a checkpoint in the runtime called `name`."""

    def opened(checkpoint: Checkpoint) -> Runtime:
        return open_runtime(name, checkpoint, device=device, dtype=dtype)

    return opened


def check_sandbox(report: Report) -> None:
    """Report which sandbox layers this machine has to contain generated code.

    Raises QCompressError if the sandbox does not start.
    """
    try:
        report({"sandbox": "", **containment()})
    except SandboxError as error:
        raise QCompressError(f"{error}; choose other tasks than python with --kind") from error


def check_retention(rows: Sequence[Row], minimum: float) -> None:
    """Raises GateFailure if a retention is below `minimum`, or if a candidate has no retention at all.

    The error names every such candidate and kind.
    """
    candidates = [row for row in rows if row["role"] == "candidate"]
    measured = [row for row in candidates if row["retention"] is not None]
    if missing := {row["name"] for row in candidates} - {row["name"] for row in measured}:
        raise GateFailure(f"{min(missing)}: no kind has a retention: {missing_reason(rows)}")
    low = [row for row in measured if row["kind"] != "all" and row["retention"] < minimum]
    if low:
        kinds = "; ".join(f"{row['name']}: {format_retention(row)}" for row in low)
        raise GateFailure(f"{kinds}, less than {minimum:g} %; {CURE}")


def missing_reason(rows: Sequence[Row]) -> str:
    """The reason why no retention exists: the scorers failed, or the reference scores 0."""
    errors = sum(row["errors"] for row in rows if row["kind"] != "all")
    if errors and not any(row["items"] for row in rows):
        return f"scorers failed on all {errors} answers; --out holds the reasons"
    return "the reference scores 0 on every kind"
