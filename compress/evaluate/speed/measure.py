"""Measure speed and memory of checkpoints. Each is measured in a separate process and gets one `SpeedRow`."""

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import IO, Any, cast

from compress.checkpoint.hub import model_name
from compress.checkpoint.load import open_causal_lm
from compress.checkpoint.read import Checkpoint, PathOrCheckpoint
from compress.core.guard import worker_command
from compress.core.rows import CapacityRow, SpeedRow
from compress.evaluate.names import short_names
from compress.evaluate.speed.capacity import check_context, predict_paths
from compress.evaluate.speed.hardware import find_hardware, memory_only
from compress.evaluate.speed.kv_cache import kv_blocks_of
from compress.evaluate.speed.settings import Prediction, Resources, Timing
from compress.runtimes.protocol import pick_runtime
from compress.runtimes.timing import resident_peak

Row = dict[str, Any]
Report = Callable[[Row], None]
WORKERS = {"transformers": "compress.runtimes.transformers_runtime", "vllm": "compress.runtimes.vllm_runtime"}
LATENCIES = ("ttft_ms", "tpot_ms", "e2el_ms")
THROUGHPUTS = ("decode_throughput", "output_throughput", "total_token_throughput")
SAMPLED = LATENCIES + THROUGHPUTS
LESS_IS_BETTER = ("weights_bytes", "peak_bytes", *LATENCIES)
MORE_IS_BETTER = (*THROUGHPUTS, "largest_batch")
GAINS = LESS_IS_BETTER + MORE_IS_BETTER
FACTS = (
    "runtime_version",
    "device",
    "threads",
    "dtype",
    "peak_bytes",
    "baseline_bytes",
    "kv_cache_bytes",
    "kv_cache_tokens",
    "kv_blocks",
    "kv_block_size",
    "largest_batch",
    "largest_batch_how",
    "largest_batch_ran",
)
POLL_SECONDS = 0.1


@dataclass
class Lines:
    """The lines that the measuring processes of one checkpoint wrote, split into facts and samples."""

    facts: list[Row] = field(default_factory=list)
    samples: list[Row] = field(default_factory=list)

    def add(self, line: Row) -> None:
        if "facts" in line:
            self.facts.append(line["facts"])
        if "sample" in line:
            self.samples.append(line["sample"])

    @property
    def error(self) -> str | None:
        return next((facts["error"] for facts in self.facts if facts.get("error")), None)


def bench_rows(
    paths: Sequence[Path],
    timing: Timing,
    resources: Resources,
    prediction: Prediction,
    report: Report = lambda row: None,
) -> tuple[list[SpeedRow], list[CapacityRow]]:
    """The measured rows and the predicted rows.

    Predictions come first. They take no time, so an error in them ends the command before any measurement. They do not
    depend on `quick`, which makes only the measured requests smaller.
    """
    timing.complete()  # raises ValueError before any work
    hardware = find_hardware(prediction.hardware)
    hardware += [memory_only(resources.gpu_memory)] if resources.gpu_memory else []
    numbers = replace(timing, quick=False).complete().numbers
    request = (numbers["prompt_tokens"], numbers["new_tokens"])
    predicted = (
        predict_paths(paths, hardware, prediction.packed, *request, prediction.kv_cache_dtype) if hardware else []
    )
    measured = [] if prediction.predict_only else speed_rows(paths, timing, resources, report=report)
    return measured, predicted


def speed_rows(
    sources: Sequence[PathOrCheckpoint],
    timing: Timing,
    resources: Resources,
    *,
    report: Report = lambda row: None,
) -> list[SpeedRow]:
    """One row per checkpoint. The first checkpoint is the reference.

    Every round starts one process per checkpoint. Every second round runs in reverse order, so that a machine that
    slows down slows all checkpoints. If a process fails or exceeds the timeout, its checkpoint is not measured again,
    and the row states the reason. Raises QCompressError if a path has no checkpoint, or if a request is longer than a
    model's context.
    """
    timing = timing.complete()
    runtime = pick_runtime(timing.runtime, resources.device)
    checkpoints = [open_causal_lm(source, readable=runtime != "vllm") for source in sources]
    for checkpoint in checkpoints:
        tokens = timing.numbers["prompt_tokens"] + timing.numbers["new_tokens"]
        check_context(checkpoint.path, checkpoint.config, tokens)
    order = [(checkpoint, Lines()) for checkpoint in checkpoints]
    for number in range(timing.rounds):
        for checkpoint, lines in order[:: -1 if number % 2 else 1]:
            if not lines.error:
                run_once(make_request(checkpoint, timing, resources, number), runtime, resources, lines)
                report(progress_row(checkpoint, number, lines))
    rows = [make_row(index, *pair, timing) | {"runtime": runtime} for index, pair in enumerate(order)]
    names = short_names([checkpoint.path for checkpoint in checkpoints])
    rows = [row | {"name": name} for row, name in zip(rows, names, strict=True)]
    return [cast("SpeedRow", row | gains(row, rows[0])) for row in rows]


def progress_row(checkpoint: Checkpoint, number: int, lines: Lines) -> Row:
    return {"measured": checkpoint.path, "round": number + 1, "error": lines.error, **medians(lines.samples)}


def run_once(request: Row, runtime: str, resources: Resources, lines: Lines) -> None:
    """Start the measuring process of one round, wait until it ends, and collect its lines."""
    lines.add({"facts": {"load_average": os.getloadavg()[0]}})
    with nameless_file() as question, nameless_file() as answer, nameless_file() as log:
        question.write(json.dumps(request))
        question.flush()
        files = (question.fileno(), answer.fileno())
        worker = subprocess.Popen(
            worker_command(WORKERS[runtime], *(f"/dev/fd/{number}" for number in files)),
            env=worker_environment(resources.kv_cache),
            pass_fds=files,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        code, peak = wait(worker, resources.timeout)
        answer.seek(0)
        for line in answer.read().split("\n")[:-1]:
            lines.add(json.loads(line))
        if code != 0:
            log.seek(0)
            lines.add({"facts": {"error": failure_reason(code, peak, resources.timeout, log.read())}})


def nameless_file() -> IO[str]:
    """A temporary file without a name: nothing stays on disk, even if this process is killed."""
    return tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")


def make_request(checkpoint: Checkpoint, timing: Timing, resources: Resources, number: int) -> Row:
    """The request that a measuring process reads. `number` is the round, from 0.

    `memory` is the number of bytes on the GPU that the process may use. Only the last round runs the largest batch.
    """
    timing = timing.complete()
    blocks = kv_blocks_of(checkpoint.config)
    return timing.numbers | {
        "checkpoint": str(checkpoint.path),
        "vocab_size": checkpoint.config["vocab_size"],
        "warm_up": 1,
        "device": resources.device,
        "dtype": resources.dtype,
        "memory": None if resources.gpu_memory is None else memory_only(resources.gpu_memory).usable,
        "max_batch_size": timing.max_batch_size,
        "confirm_batch": timing.confirm_batch and number == timing.rounds - 1,
        "kv_bytes_per_token": sum(block.bytes for block in blocks),
    }


def worker_environment(kv_cache_gib: int) -> dict[str, str]:
    """The environment of a measuring process, with the size of vLLM's KV cache.

    OMP_WAIT_POLICY and GOMP_SPINCOUNT are left out, because the command line sets them for this process only.
    """
    inherited = {key: value for key, value in os.environ.items() if key not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    return {"VLLM_CPU_KVCACHE_SPACE": str(kv_cache_gib)} | inherited


def wait(worker: "subprocess.Popen[bytes]", timeout: float) -> tuple[int | None, int]:
    """Wait for a process; returns its exit code and its peak bytes.

    If it runs longer than `timeout` seconds, the exit code is None. At the end the whole process group is killed, so
    that no child process stays.
    """
    end, peak, code = time.monotonic() + timeout, 0, None
    try:
        while (code := worker.poll()) is None and time.monotonic() < end:
            peak = max(peak, resident_peak(worker.pid))
            time.sleep(POLL_SECONDS)
    finally:
        with suppress(ProcessLookupError):  # the whole group has ended
            os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()
    return code, peak


def failure_reason(code: int | None, peak: int, timeout: float, output: str) -> str:
    """The reason why a measuring process failed, in one line."""
    memory = f"peak memory {peak / 1e9:.2f} GB"
    if code is None:
        return f"not finished after {timeout:g} s ({memory}); raise --timeout, or use --quick or smaller numbers"
    if code == -signal.SIGKILL:
        return f"killed by signal 9, probably out of memory ({memory}); lower --batch-size or --prompt-tokens"
    if code < 0:
        return f"ended by signal {-code} ({memory})"
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line.split(":")[0] and not line.startswith(("File", "raise"))]
    return (errors or lines or [f"exit code {code}"])[-1][:300]


def make_row(index: int, checkpoint: Checkpoint, lines: Lines, timing: Timing) -> Row:
    """The row of a checkpoint, without gains.

    Facts are those of the last process. Peak memory and load average are the highest of all processes.
    """
    facts: Row = {}
    for part in lines.facts:
        facts |= {key: value for key, value in part.items() if value is not None}
    numbers = timing.complete().numbers
    return {
        "kind": "measured",
        "name": model_name(checkpoint.path),
        "path": str(checkpoint.path),
        "role": "candidate" if index else "reference",
        "digest": checkpoint.digest,
        "runtime": facts.get("runtime"),
        **{key: numbers[key] for key in ("prompt_tokens", "new_tokens", "batch_size")},
        "rounds": timing.rounds,
        "repeats": sum("ttft_ms" in sample for sample in lines.samples),
        "weights_bytes": checkpoint.bytes,
        **{key: facts.get(key) for key in FACTS},
        **{key: highest(lines.facts, key) for key in ("peak_bytes", "load_average")},
        "kv_bytes_per_token": sum(block.bytes for block in kv_blocks_of(checkpoint.config)),
        **dict.fromkeys([key + end for key in SAMPLED for end in ("", "_low", "_high")]),
        **medians(lines.samples, spread=True),
        "error": lines.error,
        "note": facts.get("note"),
    }


def highest(facts: Sequence[Row], key: str) -> Any:
    """The largest value under a key, or None if no row has the key."""
    return max((part[key] for part in facts if part.get(key) is not None), default=None)


def medians(samples: Sequence[Row], *, spread: bool = False) -> Row:
    """The median of every sampled figure. With `spread`, the minimum and maximum too."""
    row: Row = {}
    for key in SAMPLED:
        values = [sample[key] for sample in samples if key in sample]
        if values:
            row[key] = median(values)
            row |= {f"{key}_low": min(values), f"{key}_high": max(values)} if spread else {}
    return row


def gains(row: Row, reference: Row) -> Row:
    """The improvement of each figure over the reference in %. Positive means better.

    In the reference's row, all gains are None.
    """
    return {f"{key}_gain": gain(row, reference, key) for key in GAINS}


def gain(row: Row, reference: Row, key: str) -> float | None:
    value, base = row[key], reference[key]
    if row["role"] != "candidate" or value is None or not base:
        return None
    return float(100 * (base - value if key in LESS_IS_BETTER else value - base) / base)
