"""Speed and memory of a checkpoint: one row each, measured in a process of its own.

A row of `speed_rows`, bytes and seconds throughout; any figure is None where it could not be measured:
    kind name path role digest          "measured"; role is "reference" for the first checkpoint, else "candidate"
    engine engine_version device dtype  what ran it, where, in which dtype
    prompt_tokens new_tokens batch      a request, and how many of them for the throughput
    repeats rounds threads load_average repeats in all; processes started; torch's threads; the machine's load before
    weights_bytes                       of the safetensors files
    peak_bytes baseline_bytes           most memory held, and how much before the model was loaded: of the whole process
                                        (CPU), or what torch reserved on the GPU; vLLM's includes its KV cache
    kv_cache_bytes kv_cache_tokens      what vLLM set aside; None with transformers
    kv_blocks kv_block_size             the same in vLLM's blocks, and the tokens of one
    kv_bytes_per_token                  predicted from config.json
    ttft_s generate_s latency_s         median seconds: prompt in and first token out; all other tokens; both
    ttft_s_low ttft_s_high …            the least and greatest of the repeats, for each of the three and the two below
    decode_tokens_per_s                 of one request, after its first token
    throughput_tokens_per_s             new tokens of all requests of a batch over its whole time
    largest_batch largest_batch_how     requests of this length at a time, and how that is known
    largest_batch_ran                   whether a batch of that size was run
    KEY_gain                            for each of GAINS: improvement over the reference in %; saved bytes and seconds,
                                        added tokens/s and requests; None in the reference's own row
    error                               why figures are missing, else None
    note                                what to know when reading the row, else None
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from compress.checkpoint.load import open_causal_lm
from compress.checkpoint.read import Checkpoint
from compress.core.errors import QCompressError
from compress.core.timing import resident_peak
from compress.evaluate.names import short_names
from compress.evaluate.speed.capacity import check_context, kv_blocks_of, kv_bytes
from compress.evaluate.speed.hardware import plain_memory

Row = dict[str, Any]
Report = Callable[[Row], None]
Told = dict[str, list[Row]]  # by kind of line: facts, sample
WORKERS = {"transformers": "compress.runtimes.transformers_timed", "vllm": "compress.runtimes.vllm_timed"}
SAMPLED = ("ttft_s", "generate_s", "latency_s", "decode_tokens_per_s", "throughput_tokens_per_s")
LESS = ("weights_bytes", "peak_bytes", "ttft_s", "generate_s", "latency_s")
MORE = ("decode_tokens_per_s", "throughput_tokens_per_s", "largest_batch")
GAINS = LESS + MORE
FIGURES: tuple[str, ...] = (
    "engine_version",
    "device",
    "threads",
    "dtype",
    "peak_bytes",
    "baseline_bytes",
    "kv_cache_bytes",
)
FIGURES += ("kv_cache_tokens", "kv_blocks", "kv_block_size", "largest_batch", "largest_batch_how", "largest_batch_ran")
POLL = 0.1  # seconds


@dataclass(frozen=True)
class Timing:
    """What is measured: a request, a batch, how often, by which engine, on a card of `memory` bytes (None: this)."""

    engine: str = "transformers"
    prompt_tokens: int = 1024
    new_tokens: int = 512
    batch: int = 8
    max_batch: int = 256
    repeats: int = 3
    rounds: int = 1
    memory: int | None = None
    dtype: str = "auto"
    confirm_batch: bool = False

    def __post_init__(self) -> None:
        if self.new_tokens < 2:
            raise ValueError(f"--new-tokens {self.new_tokens}: the speed of decoding needs at least 2")
        if self.engine == "vllm" and self.batch > self.max_batch:
            raise ValueError(f"--batch {self.batch} is more than --max-batch {self.max_batch}; raise that one")


def choose_engine(wanted: str) -> str:
    """vllm where it is installed, for "auto". QCompressError when vllm is wanted and missing."""
    there = find_spec("vllm") is not None
    if wanted == "vllm" and not there:
        raise QCompressError(
            "--engine vllm: vLLM is not installed here; pip install vllm, or take --engine transformers"
        )
    return wanted if wanted != "auto" else "vllm" if there else "transformers"


def speed_rows(
    paths: Sequence[Path], timing: Timing, *, timeout: float, kv_cache_gib: int = 2, report: Report = lambda row: None
) -> list[Row]:
    """One row per checkpoint, the first the reference. Every round starts each checkpoint once, every second one in
    the opposite order, so that a machine that slows down slows all of them.

    A process that fails, is killed, or takes longer than `timeout` seconds ends its checkpoint's rounds and leaves its
    reason in the row. QCompressError for what is no checkpoint, or for requests beyond a model's context.
    """
    checkpoints = [open_causal_lm(path) for path in paths]
    for checkpoint in checkpoints:
        check_context(checkpoint.path, checkpoint.config, timing.prompt_tokens + timing.new_tokens)
    told: list[Told] = [{"facts": [], "sample": []} for _ in checkpoints]
    order = list(zip(checkpoints, told, strict=True))
    for turn in range(timing.rounds):
        for checkpoint, lines in order[:: -1 if turn % 2 else 1]:
            if not failure(lines):
                run_once(checkpoint, timing, turn, timeout, kv_cache_gib, lines)
                report(progress_row(checkpoint, turn, lines))
    rows = [make_row(index, *pair, timing) for index, pair in enumerate(order)]
    rows = [row | {"name": name} for row, name in zip(rows, short_names(paths), strict=True)]
    return [row | gains(row, rows[0]) for row in rows]


def failure(lines: Told) -> str | None:
    return next((facts["error"] for facts in lines["facts"] if facts.get("error")), None)


def progress_row(checkpoint: Checkpoint, turn: int, lines: Told) -> Row:
    return {"timed": checkpoint.path, "round": turn + 1, "error": failure(lines), **medians(lines["sample"])}


def run_once(checkpoint: Checkpoint, timing: Timing, turn: int, timeout: float, kv_cache_gib: int, lines: Told) -> None:
    """Start the engine's process for one round, and collect what it tells."""
    lines["facts"].append({"load_average": os.getloadavg()[0]})
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as log:
        files = [Path(folder) / name for name in ("request.json", "lines.jsonl")]
        files[0].write_text(json.dumps(make_request(checkpoint, timing, turn)), encoding="utf-8")
        command = [sys.executable, "-m", WORKERS[timing.engine], *map(str, files)]
        worker = subprocess.Popen(
            command, env=environment(kv_cache_gib), stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        code, peak = wait(worker, timeout)
        for line in files[1].read_text(encoding="utf-8").splitlines() if files[1].exists() else ():
            for kind, figures in json.loads(line).items():
                lines[kind].append(figures)
        if code != 0:
            log.seek(0)
            lines["facts"].append({"error": why(code, peak, timeout, log.read())})


def make_request(checkpoint: Checkpoint, timing: Timing, turn: int) -> Row:
    """What a worker needs; `memory` is what it may use of the card. Only the last round runs the largest batch."""
    blocks = kv_blocks_of(checkpoint.config)
    return asdict(timing) | {
        "checkpoint": str(checkpoint.path),
        "vocabulary": checkpoint.config["vocab_size"],
        "warm_up": 1,
        "memory": None if timing.memory is None else plain_memory(timing.memory).usable,
        "confirm_batch": timing.confirm_batch and turn == timing.rounds - 1,
        "kv_bytes_per_token": sum(block.bytes for block in blocks),
        "kv_bytes_per_request": kv_bytes(blocks, timing.prompt_tokens + timing.new_tokens, page=1),
    }


def environment(kv_cache_gib: int) -> dict[str, str]:
    """Of a worker: threads wait as they do where models are served, not as beside other programs."""
    kept = {key: value for key, value in os.environ.items() if key not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    return {"VLLM_CPU_KVCACHE_SPACE": str(kv_cache_gib)} | kept


def wait(worker: "subprocess.Popen[bytes]", timeout: float) -> tuple[int | None, int]:
    """(exit code, peak bytes) of a process; the code is None when it was ended after `timeout` seconds.

    Whatever the worker started ends with it.
    """
    end, peak, code = time.monotonic() + timeout, 0, None
    try:
        while (code := worker.poll()) is None and time.monotonic() < end:
            peak = max(peak, resident_peak(worker.pid))
            time.sleep(POLL)
    finally:
        with suppress(ProcessLookupError):  # nothing of it is left
            os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()
    return code, peak


def why(code: int | None, peak: int, timeout: float, output: str) -> str:
    """One line about a worker that did not end well."""
    held = f"{peak / 1e9:.2f} GB were held"
    if code is None:
        return f"not done after {timeout:g} s ({held}); raise --timeout, or take --quick or smaller numbers"
    if code == -signal.SIGKILL:
        return f"killed by signal 9, as Linux does when memory is short ({held}); lower --batch or --prompt-tokens"
    if code < 0:
        return f"ended by signal {-code} ({held})"
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    told = [line for line in lines if "Error" in line.split(":")[0] and not line.startswith(("File", "raise"))]
    return (told or lines or [f"exit code {code}"])[-1][:300]


def make_row(index: int, checkpoint: Checkpoint, lines: Told, timing: Timing) -> Row:
    """The row of a checkpoint without its gains; figures of the last process that gave them, peaks of the highest."""
    facts: Row = {}
    for figures in lines["facts"]:
        facts |= {key: value for key, value in figures.items() if value is not None}
    highest = {
        key: max((figures[key] for figures in lines["facts"] if figures.get(key) is not None), default=None)
        for key in ("peak_bytes", "load_average")
    }
    settings = asdict(timing)
    return {
        "kind": "measured",
        "name": checkpoint.path.resolve().name,
        "path": str(checkpoint.path),
        "role": "candidate" if index else "reference",
        "digest": checkpoint.digest,
        **{key: settings[key] for key in ("engine", "prompt_tokens", "new_tokens", "batch", "rounds")},
        "repeats": sum("ttft_s" in sample for sample in lines["sample"]),
        "weights_bytes": checkpoint.bytes,
        **{key: facts.get(key) for key in FIGURES},
        **highest,
        "kv_bytes_per_token": sum(block.bytes for block in kv_blocks_of(checkpoint.config)),
        **dict.fromkeys([key + end for key in SAMPLED for end in ("", "_low", "_high")]),
        **medians(lines["sample"], spread=True),
        "error": failure(lines),
        "note": facts.get("note"),
    }


def medians(samples: Sequence[Row], *, spread: bool = False) -> Row:
    """The median of every figure that was sampled, and with `spread` the least and the greatest."""
    row: Row = {}
    for key in SAMPLED:
        values = [sample[key] for sample in samples if key in sample]
        if values:
            row[key] = median(values)
            row |= {f"{key}_low": min(values), f"{key}_high": max(values)} if spread else {}
    return row


def gains(row: Row, reference: Row) -> Row:
    """Improvement over the reference in %: the share saved of LESS, the share added of MORE."""
    found: Row = {}
    for key in GAINS:
        value, base = row[key], reference[key]
        known = row["role"] == "candidate" and value is not None and base
        found[f"{key}_gain"] = 100 * (base - value if key in LESS else value - base) / base if known else None
    return found
