"""quantize_checkpoint(): turn a 16-bit checkpoint into a 4-bit checkpoint, block by block.

Memory holds the weights of one block at a time. The output has a temporary name until the validator accepts it.
A job that was killed continues after the last block in its journal.
"""

import time
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

from calibration.corpus import source_digest
from calibration.start import format_start_token
from calibration.windows import Windows
from compress.checkpoint.memory_check import check_gpu_memory, check_memory
from compress.checkpoint.read import Checkpoint, PathOrCheckpoint
from compress.checkpoint.write import CheckpointWriter
from compress.core.config import QuantizeConfig
from compress.core.report import Report, Row, silent
from compress.model.blocks import BlockModel
from compress.quantize.blocks.lockstep import Schedule
from compress.quantize.blocks.loop import QuantizeJob, quantize_blocks, work_bytes
from compress.quantize.blocks.memory_estimate import ACTIVATION_MEMORY, PROCESS, choose_schedule, estimate_memory
from compress.quantize.blocks.source import choose_compute_dtype, make_blocks
from compress.quantize.calibrate import job_start, job_windows
from compress.quantize.gpu_estimate import gpu_parts
from compress.quantize.journal import shared_journal
from compress.quantize.layout.job_plan import plan_quantize
from compress.quantize.layout.plan import LayoutPlan, group_size_reason, padding_row, plan_row
from compress.quantize.processes import ALONE, Processes
from compress.quantize.publish import finish


@dataclass(frozen=True)
class RunOptions:
    """The options of a run that are not part of `QuantizeConfig`.

    `restart` removes the finished blocks of an earlier run. `activation_memory` is the RAM in bytes for activations
    between the stages of a block; it changes the speed, never the result. Each of several `processes` runs its share
    of the windows; the first one writes and reports.
    """

    restart: bool = False
    activation_memory: int = ACTIVATION_MEMORY
    device: str = "cpu"
    processes: Processes = ALONE
    report: Report = silent


DEFAULT_RUN = RunOptions()


def quantize_checkpoint(
    model: PathOrCheckpoint, out: Path, config: QuantizeConfig, run: RunOptions = DEFAULT_RUN
) -> Row:
    """Quantize `model` into `out` and return the summary row. A failed job leaves nothing at `out`.

    Finished blocks of a failed or killed job are kept. The same call continues after them, and writes the same bytes as
    an uninterrupted run. On every device, statistics are summed in float32 and weights are rounded in float32.
    Raises QCompressError if input is bad, and GateFailure if the validator rejects the result.
    """
    started = time.perf_counter()
    config = config.with_held_out() if config.tune else config
    checkpoint, plan = plan_quantize(model, config)
    config = replace(config, compute_dtype=choose_compute_dtype(config, checkpoint, run.device))
    blocks = make_blocks(checkpoint, config, run.device)
    memory_bytes = checked_memory(checkpoint, blocks, plan, config, run)
    settings = job_settings(checkpoint, plan, config) | {"processes": run.processes.count, "device": run.device}
    disk_bytes = plan.bytes + work_bytes(blocks, plan, config)
    with shared_journal(out, settings, disk_bytes, run.processes, restart=run.restart) as journal:
        report = silent if run.processes.rank else run.report
        job = QuantizeJob(checkpoint, plan, config, blocks, journal, run.processes, report)
        report_plan(job, memory_bytes)
        if not journal.published:
            write_checkpoint(job, choose_schedule(blocks, plan, config, run.activation_memory))
        rows = run.processes.first(lambda: journal.rows)
        run.processes.first(journal.discard)
    return summary(job, rows, time.perf_counter() - started)


def checked_memory(
    checkpoint: Checkpoint, blocks: BlockModel, plan: LayoutPlan, config: QuantizeConfig, run: RunOptions
) -> int:
    """The estimated bytes that the job needs of the machine, or of its GPU. Raises QCompressError if less is free."""
    if run.device == "cpu":
        needed = estimate_memory(blocks, plan, config, run.activation_memory)
        check_memory(checkpoint.path, needed - PROCESS)
        return needed
    parts = gpu_parts(plan, config)
    needed = sum(parts.values()) - parts["states"]  # states that do not fit stay in files
    check_gpu_memory(checkpoint.path, needed, "stop other programs on it, use a larger GPU, or --device cpu")
    return needed


def job_settings(checkpoint: Checkpoint, plan: LayoutPlan, config: QuantizeConfig) -> Row:
    """All settings that change the bytes of the result. Texts and the checkpoint are represented by their digests."""
    settings = {key: value for key, value in asdict(config).items() if key != "max_size"}
    return {
        "model": str(checkpoint.path),
        "source": checkpoint.digest,
        "small_files": checkpoint.small_files_digest,
        **settings,
        "group_size": plan.scheme.group_size,
        "sym": plan.scheme.sym,
        "dtype": str(plan.scheme.dtype).removeprefix("torch."),
        "text": {name: source_digest(name) for name in config.text} if config.reads_text else {},
        **{name: version(name) for name in ("qcompress", "torch", "transformers")},
    }


def report_plan(job: QuantizeJob, memory_bytes: int) -> None:
    """Report the layout, the job's memory, and why an automatic group size is not the largest one."""
    row = plan_row(str(job.checkpoint.path), job.plan, job.config)
    job.report(row | {"memory_bytes": memory_bytes, "compute_dtype": job.config.compute_dtype})
    reason = None if job.config.group_size else group_size_reason(job.plan, job.config.tensor_parallel_size)
    if reason is not None:
        job.report({"group_size": reason})
    padding = padding_row(job.checkpoint, job.plan)
    if padding:
        job.report(padding)


def write_checkpoint(job: QuantizeJob, schedule: Schedule) -> None:
    """Quantize the remaining blocks, tune the checkpoint if the config has `tune`, and publish it."""
    out, plan = job.journal.out, job.plan
    windows = read_windows(job) if job.config.reads_text else None
    writer = job.processes.first(lambda: CheckpointWriter(out, plan.specs, keep=True))
    quantize_blocks(job, writer, windows if job.config.method != "rtn" else None, schedule)
    job.processes.first(lambda: finish(job, writer, windows))


def read_windows(job: QuantizeJob) -> Windows:
    """The job's windows. A measurement decides whether they begin with a start token; the journal stores it."""
    journal, tokenizer = job.journal, job.checkpoint.tokenizer

    def measure() -> Row:
        if "start" not in journal.notes:
            journal.notes["start"] = asdict(job_start(job.blocks, tokenizer, job.config))
            journal.save()
        return journal.notes["start"]

    token = job.processes.first(measure)["token"]
    windows = job_windows(tokenizer, job.config, token)
    counts = {"windows": windows.manifest["n_samples"], "held_out": windows.manifest.get("held_out")}
    job.report({"text": ", ".join(job.config.text), **counts, "start_token": format_start_token(token)})
    return windows


def expert_counts(rows: list[Row]) -> Row:
    """The number of experts, and of those that saw too few tokens or none. {} without experts.

    Every expert has several rows with equal numbers, so its down projection is not counted twice.
    """
    names = {(row["block"], row["linear"].rpartition(".")[0]): row for row in rows if "tokens" in row}
    shared, unseen = ([row[key] for row in names.values()] for key in ("shared_statistics", "tokens"))
    counts = {"experts": len(names), "shared_statistics": sum(shared), "experts_without_tokens": unseen.count(0)}
    return counts if names else {}


def summary(job: QuantizeJob, rows: list[Row], seconds: float) -> Row:
    """The row that the command prints: plan, mean errors, seconds, and how many linears were scaled or damped more."""
    damping = job.config.damp_percent
    return {
        **plan_row(str(job.checkpoint.path), job.plan, job.config),
        **padding_row(job.checkpoint, job.plan),
        "out": str(job.journal.out),
        "mean_error": sum(row["error"] for row in rows) / len(rows),
        "mean_rtn_error": sum(row["rtn_error"] for row in rows) / len(rows),
        "more_damping": sum((row.get("damp_percent") or 0) > damping for row in rows),
        "scaled": sum(bool(row.get("scaled")) for row in rows),
        **expert_counts(rows),
        "seconds": round(seconds, 1),
    }
