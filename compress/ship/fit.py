"""The sizes of a checkpoint on a board, and the flags of vLLM that they assume. Nothing is refused here.

Memory is counted as in `bench --predict-only`: weights, KV cache of all requests, and an allowance. On unified memory,
pages of the weight file that is being read lie beside the loaded weights, so loading has a peak of its own. An idle
Orin Nano without a desktop uses 0.6 to 1.0 GB (public tegrastats logs): SYSTEM is what loading must leave.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from compress.checkpoint.read import Checkpoint, weight_files
from compress.evaluate.speed.capacity import CHUNK, LIBRARIES, ModelFootprint, estimate, overhead
from compress.evaluate.speed.hardware import BFLOAT16, Hardware
from compress.evaluate.speed.kv_cache import AUTO, PAGE, kv_blocks_of, kv_bytes, served_dtype
from compress.ship.boards import Board

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


@dataclass(frozen=True)
class Subject:
    """What the checks of sizes compare."""

    checkpoint: Checkpoint
    board: Board
    footprint: ModelFootprint
    hardware: Hardware
    request: Request
    fit: Fit

    def usable_after_weights(self, requests: int) -> int:
        """Bytes that these weights and the allowance leave to the KV cache of so many requests."""
        allowance = self.hardware.gpus * overhead(self.footprint.config, requests)
        return self.hardware.usable - self.footprint.weights - allowance

    def room(self, requests: int, kv_dtype: str) -> int:
        """Bytes for the weights beside the KV cache of so many requests."""
        return weight_room(self.footprint, self.hardware, replace(self.request, requests=requests, kv_dtype=kv_dtype))


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
        cache = request.requests * kv_bytes(footprint.blocks, request.context + PAGE)  # vLLM keeps one page empty
        flags += ["--kv-cache-memory-bytes", str(cache), "--max-num-batched-tokens", str(CHUNK)]
    if request.kv_dtype != AUTO:
        flags += ["--kv-cache-dtype", request.kv_dtype]
    if hardware.gpus > 1:
        flags += ["--tensor-parallel-size", str(hardware.gpus)]
    if (hardware.capability or BFLOAT16) < BFLOAT16 and served_dtype(footprint.config) == "bfloat16":
        flags += ["--dtype", "float16"]
    return flags


def weight_room(footprint: ModelFootprint, hardware: Hardware, request: Request) -> int:
    """The bytes of weights that fit on the hardware beside the KV cache of a request and the allowance.

    On unified memory, loading leaves room for twice the weights, if they are in one file.
    """
    blocks = kv_blocks_of(footprint.config, request.kv_dtype, hardware.gpus)
    cache = request.requests * kv_bytes(blocks, request.context)
    room = hardware.usable - cache - hardware.gpus * overhead(footprint.config, request.requests)
    return min(room, (hardware.memory - SYSTEM - LIBRARIES) // 2) if hardware.unified else room
