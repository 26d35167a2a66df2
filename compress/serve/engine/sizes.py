"""The sizes with which an engine starts: context, concurrent requests, queue.

On a GPU they follow from the capacity prediction. On a CPU the KV cache has CPU_CACHE bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from compress.checkpoint.memory_check import check_memory
from compress.checkpoint.read import Checkpoint
from compress.core.errors import QCompressError
from compress.core.units import format_bytes
from compress.evaluate.speed.capacity import ModelFootprint, checkpoint_footprint, overhead
from compress.evaluate.speed.hardware import BFLOAT16, UTILIZATION, Hardware, unsupported_reason
from compress.evaluate.speed.kv_cache import kv_bytes, longest_within, served_dtype
from compress.serve.engine.probe import Environment

CPU_CACHE = 2 * 2**30  # bytes of vLLM's KV cache on a CPU
CPU_SEQUENCES, GPU_SEQUENCES = 16, 256
USUAL_REQUEST = 2048  # tokens of the requests for which `sequences` is computed
QUEUE_FACTOR = 4  # waiting requests for each running one
SMALLEST = 256  # tokens; with a smaller context nobody can chat
SLOW_CONTEXT = 4096  # tokens, on transformers
UNPREDICTED = 8192  # tokens, for caches that the prediction does not cover


@dataclass(frozen=True)
class EngineSizes:
    """The sizes with which an engine is started.

    `share` is the part of each GPU's memory that the engine may use. `facts` explains the sizes in words.
    """

    context: int
    sequences: int
    queue: int
    dtype: str
    share: float = UTILIZATION
    facts: str = ""


def fallback_sizes(checkpoint: Checkpoint, context: int | None, queue: int | None) -> EngineSizes:
    """Sizes for transformers, which answers one request at a time."""
    limit = model_limit(checkpoint)
    check_context(checkpoint, context, limit)
    dtype = dtype_name(checkpoint)
    length = context or min(limit, SLOW_CONTEXT)
    return EngineSizes(
        length, 1, choose(queue, QUEUE_FACTOR), dtype, facts="slow: transformers dequantizes the weights"
    )


def vllm_sizes(
    checkpoint: Checkpoint,
    environment: Environment,
    *,
    gpus: int = 1,
    engines: int = 1,
    context: int | None = None,
    queue: int | None = None,
) -> EngineSizes:
    """Sizes for vLLM on `gpus` GPUs, whose memory `engines` share, or on the CPU with a KV cache of CPU_CACHE bytes.

    Raises QCompressError if the checkpoint does not fit on the GPUs, or if `context` is longer than what fits.
    """
    hardware = machine(environment, gpus, engines)
    if reason := unsupported_reason(hardware, checkpoint.config):
        raise QCompressError(f"{checkpoint}: {reason}; use another checkpoint or GPU")
    limit = model_limit(checkpoint)
    check_context(checkpoint, context, limit)
    dtype = dtype_name(checkpoint, environment)
    share = hardware.share
    most = GPU_SEQUENCES if environment.gpus else CPU_SEQUENCES
    try:
        footprint = checkpoint_footprint(checkpoint)
    except QCompressError as error:
        length = context or min(limit, UNPREDICTED)
        return EngineSizes(length, most, choose(queue, QUEUE_FACTOR * most), dtype, share, f"not predicted: {error}")
    room, facts = cache_room(footprint, hardware, environment, gpus)
    longest = longest_within(footprint.blocks, room, limit)
    if longest < (context or min(SMALLEST, limit)):
        raise QCompressError(too_large(checkpoint, context, longest, facts))
    sizes = EngineSizes(context or longest, 1, 0, dtype, share, facts)
    usual = kv_bytes(footprint.blocks, min(sizes.context, USUAL_REQUEST))
    sequences = max(1, min(most, room // usual))
    return replace(sizes, sequences=sequences, queue=choose(queue, QUEUE_FACTOR * sequences))


def machine(environment: Environment, gpus: int, engines: int) -> Hardware:
    """The GPUs of this machine as one `Hardware`, of whose memory each engine gets an equal share."""
    share = round(UTILIZATION / engines, 3)
    capability = environment.capability or None
    return Hardware("here", "this machine", environment.memory * gpus, share, capability=capability)


def cache_room(footprint: ModelFootprint, hardware: Hardware, environment: Environment, gpus: int) -> tuple[int, str]:
    """Bytes for the KV cache, and how they were computed."""
    if not environment.gpus:
        return CPU_CACHE, f"weights {format_bytes(footprint.weights)}, KV cache {format_bytes(CPU_CACHE)} on the CPU"
    extra = gpus * overhead(footprint.config)
    room = hardware.usable - footprint.weights - extra
    facts = f"weights {format_bytes(footprint.weights)}, overhead {format_bytes(extra)}, usable "
    return max(0, room), f"{facts}{format_bytes(hardware.usable)}, KV cache {format_bytes(max(0, room))}"


def check_cpu_memory(checkpoints: Sequence[Checkpoint]) -> None:
    """Raises QCompressError unless the free memory holds the weights and the KV caches of vLLM on the CPU."""
    weights = sum(info.bytes for checkpoint in checkpoints for info in checkpoint.tensors.values())
    what = f"vLLM on the CPU with {', '.join(map(str, checkpoints))}"
    check_memory(what, len(checkpoints) * CPU_CACHE + weights, "fewer or smaller checkpoints, or a larger machine")


def too_large(checkpoint: Checkpoint, context: int | None, longest: int, facts: str) -> str:
    asked = f"--context {context:,}" if context else f"a context of {SMALLEST} tokens"
    cure = "lower --context, or use more GPUs by --tensor-parallel-size" if longest else "use more or larger GPUs"
    return f"{checkpoint}: {asked} does not fit, {longest:,} tokens do ({facts}); {cure}"


def model_limit(checkpoint: Checkpoint) -> int:
    """The model's own context in tokens."""
    return int(checkpoint.config.get("max_position_embeddings") or UNPREDICTED)


def check_context(checkpoint: Checkpoint, context: int | None, limit: int) -> None:
    if context is not None and context > limit:
        raise QCompressError(f"--context {context:,}: {checkpoint} has a context of {limit:,} tokens; lower it")


def dtype_name(checkpoint: Checkpoint, environment: Environment | None = None) -> str:
    """The dtype in which the engine computes. GPUs without bfloat16 use float16."""
    name = str(served_dtype(checkpoint.config))
    old = environment is not None and environment.gpus and environment.capability < BFLOAT16
    return "float16" if old and name == "bfloat16" else name


def choose(value: int | None, default: int) -> int:
    return default if value is None else value
