"""The gate of `ship`: whether a checkpoint runs on a board, with the bytes of each part and the flags of vLLM.

Memory is counted as in `bench --predict-only`: weights, KV cache of all requests, and an allowance. On unified memory,
pages of the weight file that is being read lie beside the loaded weights, so loading has a peak of its own. An idle
Orin Nano without a desktop uses 0.6 to 1.0 GB (public tegrastats logs), which is the SYSTEM that loading must leave.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from compress.checkpoint.formats import format_of
from compress.checkpoint.read import Checkpoint, weight_files
from compress.core.errors import GateFailure, QCompressError
from compress.core.units import format_bytes
from compress.evaluate.speed.capacity import (
    CHUNK,
    LIBRARIES,
    ModelFootprint,
    checkpoint_footprint,
    estimate,
    overhead,
    unfit_reason,
)
from compress.evaluate.speed.hardware import BFLOAT16, Hardware
from compress.evaluate.speed.kv_cache import AUTO, INT8, kv_blocks_of, kv_bytes, longest_within, served_dtype
from compress.ship.boards import Board
from compress.ship.features import missing_feature
from compress.ship.smaller import fitting_plan

SYSTEM = 1_000_000_000  # bytes of unified memory that loading leaves to the system


@dataclass(frozen=True)
class Request:
    """What the board must serve: `requests` at once, each of up to `context` tokens.

    `tensor_parallel_size` of None uses all GPUs of the board. `disk` is the free disk space of the board in bytes; None
    is not checked.
    """

    context: int
    requests: int = 1
    kv_dtype: str = AUTO
    tensor_parallel_size: int | None = None
    disk: int | None = None


@dataclass(frozen=True)
class Fit:
    """Bytes of each part on all GPUs, the flags for `vllm serve`, and the predicted decoding speed of one request.

    `needed` is the sum of the parts, of which `usable` bytes are available. `load_peak` is 0 if memory is not unified.
    `tokens_per_s` is an upper bound.
    """

    weights: int
    kv_cache: int
    allowance: int
    usable: int
    load_peak: int
    disk: int
    gpu_memory_utilization: float
    flags: tuple[str, ...]
    tokens_per_s: float | None

    @property
    def needed(self) -> int:
        return self.weights + self.kv_cache + self.allowance


def check_fit(checkpoint: Checkpoint, board: Board, request: Request) -> Fit:
    """The sizes and flags of a checkpoint on a board.

    Raises GateFailure if it does not run there: its layout, dtype or GPUs do not match, or memory or disk is short. The
    error has the bytes and what would fit. Raises QCompressError if the model's context is shorter than the request's.
    """
    footprint = checkpoint_footprint(checkpoint)
    check_context(checkpoint, footprint, request)
    hardware = used_hardware(checkpoint, board, request)
    footprint = replace(footprint, blocks=kv_blocks_of(footprint.config, request.kv_dtype, hardware.gpus))
    fault = layout_fault(checkpoint, board, request) or unfit_reason(footprint, hardware, request.kv_dtype)
    if fault:
        raise GateFailure(f"{checkpoint}: does not run on {board.title}: {fault}; {cure_of(fault)}")
    fit = measure_fit(checkpoint, footprint, hardware, request)
    check_memory(checkpoint, footprint, hardware, request, fit)
    check_load(checkpoint, hardware, fit)
    if request.disk is not None and fit.disk > request.disk:
        raise GateFailure(
            f"{checkpoint}: {format_bytes(fit.disk)} of files do not fit on the board's disk, "
            f"{format_bytes(fit.disk - request.disk)} too much of {format_bytes(request.disk)}; free space there"
        )
    return fit


def check_context(checkpoint: Checkpoint, footprint: ModelFootprint, request: Request) -> None:
    limit = footprint.context_limit
    if limit and request.context > limit:
        raise QCompressError(f"--context {request.context:,}: {checkpoint} has a context of {limit:,} tokens; lower it")


def used_hardware(checkpoint: Checkpoint, board: Board, request: Request) -> Hardware:
    """The board's hardware with the GPUs that the request uses. Raises GateFailure if the board has fewer."""
    gpus = request.tensor_parallel_size or board.gpus
    if gpus > board.gpus:
        count = "1 GPU" if board.gpus == 1 else f"{board.gpus} GPUs"
        raise GateFailure(f"{checkpoint}: --tensor-parallel-size {gpus}: {board.title} has {count}; lower it")
    return replace(board.hardware, gpus=gpus)


def layout_fault(checkpoint: Checkpoint, board: Board, request: Request) -> str | None:
    """The reason why the vLLM of the board's image cannot read the checkpoint or its KV cache, or None."""
    layout = format_of(checkpoint)
    if layout is not None and layout.name not in board.formats:
        return f"its runtimes read {', '.join(board.formats)}, not {layout.name}"
    return missing_feature(checkpoint, request.kv_dtype, board.vllm)


def cure_of(fault: str) -> str:
    """What to do about a fault that no size can cure."""
    if "GPUs cannot share" in fault:
        return "use another --tensor-parallel-size, or quantize with a smaller --group-size"
    if "KV cache" in fault:
        return "use another --kv-cache-dtype"
    return "use another board, or quantize another layout: `qcompress plan` lists them"


def measure_fit(checkpoint: Checkpoint, footprint: ModelFootprint, hardware: Hardware, request: Request) -> Fit:
    """The sizes and flags, whether they fit or not."""
    files = [path.stat().st_size for path in weight_files(checkpoint.path)]
    allowance = hardware.gpus * overhead(footprint.config, request.requests)
    cache = request.requests * kv_bytes(footprint.blocks, request.context)
    share = memory_share(hardware, footprint.weights + cache + allowance)
    return Fit(
        weights=footprint.weights,
        kv_cache=cache,
        allowance=allowance,
        usable=hardware.usable,
        load_peak=footprint.weights + max(files) + LIBRARIES if hardware.unified else 0,
        disk=sum(path.stat().st_size for path in checkpoint.path.iterdir() if path.is_file()),
        gpu_memory_utilization=share,
        flags=tuple(make_flags(footprint, hardware, request, share)),
        tokens_per_s=estimate(footprint, hardware, request.context // 2),
    )


def memory_share(hardware: Hardware, needed: int) -> float:
    """The share of a GPU's memory for vLLM: of unified memory what is needed, so that the system keeps the rest."""
    if not hardware.unified:
        return hardware.share
    return min(hardware.share, math.ceil(100 * needed / hardware.memory) / 100)


def make_flags(footprint: ModelFootprint, hardware: Hardware, request: Request, share: float) -> Sequence[str]:
    """The options of `vllm serve` that the prediction assumes."""
    flags = ["--max-model-len", str(request.context), "--max-num-seqs", str(request.requests)]
    flags += ["--gpu-memory-utilization", f"{share:g}"]
    if hardware.unified:
        flags += ["--max-num-batched-tokens", str(CHUNK)]
    if request.kv_dtype != AUTO:
        flags += ["--kv-cache-dtype", request.kv_dtype]
    if hardware.gpus > 1:
        flags += ["--tensor-parallel-size", str(hardware.gpus)]
    if (hardware.capability or BFLOAT16) < BFLOAT16 and served_dtype(footprint.config) == "bfloat16":
        flags += ["--dtype", "float16"]
    return flags


def check_memory(
    checkpoint: Checkpoint, footprint: ModelFootprint, hardware: Hardware, request: Request, fit: Fit
) -> None:
    """Raises GateFailure if weights, KV cache and allowance are too large. The error has what would fit."""
    if fit.needed <= fit.usable:
        return
    requests = "1 request" if request.requests == 1 else f"{request.requests:,} requests"
    raise GateFailure(
        f"{checkpoint}: does not fit on {hardware.title}: weights {format_bytes(fit.weights)} + KV cache "
        f"{format_bytes(fit.kv_cache)} ({requests} of {request.context:,} tokens, {request.kv_dtype}) + allowance "
        f"{format_bytes(fit.allowance)} = {format_bytes(fit.needed)}, and vLLM may use {format_bytes(fit.usable)}: "
        f"{format_bytes(fit.needed - fit.usable)} too much; {smaller_request(checkpoint, footprint, hardware, fit)}"
    )


def smaller_request(checkpoint: Checkpoint, footprint: ModelFootprint, hardware: Hardware, fit: Fit) -> str:
    """What fits instead: a shorter context of one request, smaller numbers in the KV cache, or a smaller layout."""
    room = fit.usable - fit.weights - hardware.gpus * overhead(footprint.config, 1)
    cures = []
    if room > 0 and (longest := longest_within(footprint.blocks, room, footprint.context_limit)) > 0:
        cures.append(f"one request of --context {longest} fits")
    if plan := fitting_plan(checkpoint, fit.usable - fit.kv_cache - fit.allowance):
        cures.append(f"a smaller layout fits: `{plan}`")
    return "; ".join(cures) if cures else f"no 4-bit layout fits with this KV cache: use a larger board, or {INT8}"


def check_load(checkpoint: Checkpoint, hardware: Hardware, fit: Fit) -> None:
    """Raises GateFailure if unified memory cannot hold the weights and the pages of a weight file at the same time."""
    room = hardware.memory - SYSTEM
    if fit.load_peak <= room:
        return
    plan = fitting_plan(checkpoint, (room - LIBRARIES) // 2)
    cure = f"a smaller layout fits: `{plan}`" if plan else "use a larger board"
    raise GateFailure(
        f"{checkpoint}: loading it on {hardware.title} needs {format_bytes(fit.load_peak)}, for the weights and the "
        f"pages of the largest weight file, and {format_bytes(room)} are free: "
        f"{format_bytes(fit.load_peak - room)} too much; {cure}"
    )
