"""quantize_checkpoint(): a plain checkpoint in, a 4-bit one out, block by block.

One block's weights are in memory at a time; the result lies under a temporary name until the validator has passed it.
A run that was killed goes on after the last block in its journal.
"""

import errno
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from calibration.corpus import source_digest
from calibration.start import told_token
from calibration.windows import Windows
from compress.checkpoint.finite import check_finite
from compress.checkpoint.load import open_causal_lm
from compress.checkpoint.memory_check import check_memory
from compress.checkpoint.read import Checkpoint, PathOrCheckpoint
from compress.checkpoint.write import CheckpointWriter, partial_path
from compress.core.config import QuantizeConfig
from compress.core.errors import QCompressError
from compress.model.blocks import BlockModel, parameter_shapes
from compress.model.precision import fastest_matmul_dtype
from compress.quantize.blocks.loop import QuantizeJob, quantize_blocks, work_bytes
from compress.quantize.blocks.memory_estimate import ACTIVATION_MEMORY, choose_schedule, estimate_memory, resident
from compress.quantize.calibrate import job_start, job_windows
from compress.quantize.journal import shared_journal
from compress.quantize.layout.budget import plan_within
from compress.quantize.layout.plan import (
    LayoutPlan,
    SourceModel,
    checkpoint_source,
    group_size_reason,
    plan_row,
    storage_dtype,
)
from compress.quantize.processes import ALONE, Processes
from compress.quantize.publish import finish

Row = dict[str, Any]
Report = Callable[[Row], None]


def plan_quantize(
    model: PathOrCheckpoint, config: QuantizeConfig, *, dtype: torch.dtype | None = None
) -> tuple[Checkpoint, LayoutPlan]:
    """The source and exact plan of a job, no weight read. QCompressError for what cannot be quantized."""
    checkpoint = open_causal_lm(model)
    return checkpoint, plan_within(checkpoint_source(checkpoint, dtype), config)


def plan_without_weights(
    where: str, model: dict[str, Any], config: QuantizeConfig, *, dtype: torch.dtype | None = None
) -> LayoutPlan:
    """The same plan from a config.json alone; `where` names it in errors."""
    return plan_within(SourceModel(where, parameter_shapes(model), model, dtype or storage_dtype(model)), config)


def silent(row: Row) -> None:
    """No report."""


def quantize_checkpoint(
    model: PathOrCheckpoint,
    out: Path,
    config: QuantizeConfig,
    *,
    text: Sequence[str] = ("default",),
    dtype: torch.dtype | None = None,
    restart: bool = False,
    activation_memory: int = ACTIVATION_MEMORY,
    device: str = "cpu",
    processes: Processes = ALONE,
    report: Report = silent,
) -> Row:
    """Quantize `model` into `out`; returns the summary row. Nothing is left at `out` when it fails.

    When blocks were done before it failed or was killed, their work stays, and the same call goes on from there to the
    very bytes of an uninterrupted run; `restart` removes that work first. `activation_memory` bytes may be parked
    between the stages of a block: it changes the speed, never the result. With several `processes` each runs its share
    of the windows, and the first writes and reports. Blocks run on `device` "cpu" or "cuda"; statistics are
    summed in float32, and rounding is float32, everywhere.
    Tuning is judged on an eighth as many windows where the config holds out none.
    QCompressError for bad input, GateFailure when the validator refuses the result.
    """
    started = time.perf_counter()
    if config.tune:
        config = config.judged()
    checkpoint, plan = plan_quantize(model, config, dtype=dtype)
    config = replace(config, compute_dtype=compute_dtype(config, plan, device))
    blocks = make_blocks(checkpoint, config, device)
    needed = estimate_memory(blocks, plan, config, activation_memory)
    check_memory(str(model), needed - resident())
    schedule = choose_schedule(blocks, plan, config, activation_memory)
    settings = job_settings(checkpoint, plan, config, text) | {"processes": processes.count, "device": device}
    room = plan.bytes + work_bytes(blocks, plan, config)
    with shared_journal(out, settings, room, processes, restart=restart) as journal:
        job = QuantizeJob(
            checkpoint, plan, config, blocks, journal, processes, report if processes.rank == 0 else silent
        )
        job.report(plan_row(str(model), plan, config) | {"memory_bytes": needed, "compute_dtype": config.compute_dtype})
        if not config.group_size and (reason := group_size_reason(plan)):
            job.report({"group_size": reason})
        if not journal.published:
            windows = read_windows(job, text) if reads_text(config) else None
            with full_disk(out, plan):
                writer = processes.first(lambda: CheckpointWriter(out, plan.specs, keep=True))
                quantize_blocks(job, writer, windows if config.method != "rtn" else None, schedule)
                processes.first(lambda: finish(job, writer, windows))
        rows = processes.first(lambda: journal.rows)
        processes.first(journal.discard)
    return summary(plan_row(str(model), plan, config), config, rows, out, time.perf_counter() - started)


def compute_dtype(config: QuantizeConfig, plan: LayoutPlan, device: str) -> str:
    """What blocks multiply in: unless the config says it, the fastest of this CPU, the checkpoint's own on a GPU.
    QCompressError for what a CPU cannot."""
    if config.compute_dtype == "float16" and device == "cpu":
        raise QCompressError("--compute-dtype float16: a CPU's statistics overflow in it; take bfloat16 or float32")
    if config.compute_dtype != "auto":
        return config.compute_dtype
    return str(fastest_matmul_dtype() if device == "cpu" else plan.scheme.dtype).removeprefix("torch.")


def make_blocks(checkpoint: Checkpoint, config: QuantizeConfig, device: str) -> BlockModel:
    """The 16-bit model: in the config's compute_dtype on a GPU, in float32 on a CPU, matrix products aside."""
    dtype = torch.float32 if device == "cpu" else getattr(torch, config.compute_dtype)
    return BlockModel(checkpoint.config, lambda name: check_finite(name, checkpoint.tensor(name)), dtype, device)


def reads_text(config: QuantizeConfig) -> bool:
    return config.method != "rtn" or config.tune > 0


def job_settings(checkpoint: Checkpoint, plan: LayoutPlan, config: QuantizeConfig, text: Sequence[str]) -> Row:
    """Everything that the bytes of the result follow from."""
    texts = text if reads_text(config) else []
    wanted = {key: value for key, value in asdict(config).items() if key != "max_size"}
    return {
        "model": str(checkpoint),
        "source": checkpoint.digest,
        **wanted,
        "group_size": plan.scheme.group_size,
        "sym": plan.scheme.sym,
        "dtype": str(plan.scheme.dtype).removeprefix("torch."),
        "text": {name: source_digest(name) for name in texts},
        **{name: version(name) for name in ("qcompress", "torch", "transformers")},
    }


@contextmanager
def full_disk(out: Path, plan: LayoutPlan) -> Iterator[None]:
    """A disk that fills up is said in one line; what is done stays."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        free = shutil.disk_usage(out.absolute().parent).free
        raise QCompressError(
            f"{partial_path(out)}: the disk is full: {plan.bytes:,} bytes are needed in all, {free:,} are free; "
            "make room and run the same command again, it goes on from here"
        ) from error


def read_windows(job: QuantizeJob, sources: Sequence[str]) -> Windows:
    """The windows of this job; how they begin is measured once, and noted."""
    config, journal, tokenizer = job.config, job.journal, job.checkpoint.tokenizer

    def measure() -> Row:
        if "start" not in journal.notes:
            journal.notes["start"] = asdict(job_start(job.blocks, tokenizer, sources, config))
            journal.save()
        return journal.notes["start"]

    token = job.processes.first(measure)["token"]
    windows = job_windows(tokenizer, sources, config, token)
    counts = {"windows": windows.manifest["n_samples"], "held_out": windows.manifest.get("held_out")}
    job.report({"text": ", ".join(sources), **counts, "start_token": told_token(token)})
    return windows


def summary(planned: Row, config: QuantizeConfig, rows: list[Row], out: Path, seconds: float) -> Row:
    """What the command prints: sizes, mean errors, how often damping had to grow, seconds."""
    means = {key: sum(row[key] for row in rows) / len(rows) for key in ("error", "rtn_error")}
    more_damping = sum(1 for row in rows if (row.get("damp_percent") or 0) > config.damp_percent)
    return {
        **planned,
        "out": str(out),
        "mean_error": means["error"],
        "mean_rtn_error": means["rtn_error"],
        "more_damping": more_damping,
        "scaled": sum(bool(row.get("scaled")) for row in rows),
        "seconds": round(seconds, 1),
    }
