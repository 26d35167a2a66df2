"""The choice of the runtime that generates the answers."""

from contextlib import ExitStack
from pathlib import Path

from compress.checkpoint.read import Checkpoint
from compress.core.device import pick_device
from compress.core.report import Report, silent
from compress.core.sampling import Sampling
from compress.distill.generate.answers import find_facts
from compress.runtimes.protocol import BATCH_SIZES, Runtime, RuntimeChoice, open_runtime, pick_runtime
from compress.runtimes.vllm_offline import VllmFailedError


def choose_runtime(
    name: str,
    checkpoint: Checkpoint,
    length: int,
    *,
    out: Path,
    stack: ExitStack,
    batch_size: int | None = None,
    device: str = "auto",
    gpu: int | None = None,
    report: Report = silent,
) -> RuntimeChoice:
    """Choose the runtime `name`. For "auto", choose vLLM if it starts, else transformers.

    If an interrupted run began `out`, "auto" chooses the runtime of that run. `length` is the maximum number of tokens
    of a prompt with its answer. `stack` closes a started vLLM.
    """
    if name == "auto":
        name = (find_facts(out) or {}).get("runtime", "auto")
    if name == "auto" and pick_runtime("auto", device) == "vllm":
        runtime = try_vllm(checkpoint, length, gpu, stack, report)
        if runtime is not None:
            return RuntimeChoice("vllm", batch_size or BATCH_SIZES["vllm"], lambda checkpoint, length: runtime)
    if name == "vllm":
        return vllm_choice(batch_size, device, gpu)
    return transformers_choice(batch_size, device, gpu)


def transformers_choice(batch_size: int | None = None, device: str = "auto", gpu: int | None = None) -> RuntimeChoice:
    """Choose the runtime transformers, in float32 on a CPU and in bfloat16 on a GPU."""
    dtype = "bfloat16" if pick_device(device) == "cuda" else "float32"

    def opened(checkpoint: Checkpoint, length: int) -> Runtime:
        return open_runtime("transformers", checkpoint, device=device, dtype=dtype, gpu=gpu)

    return RuntimeChoice("transformers", batch_size or BATCH_SIZES["transformers"], opened)


def vllm_choice(batch_size: int | None, device: str, gpu: int | None) -> RuntimeChoice:
    """Choose the runtime vLLM, in the checkpoint's dtype. Raises QCompressError if vLLM cannot run here."""
    pick_runtime("vllm", device)

    def opened(checkpoint: Checkpoint, length: int) -> Runtime:
        return open_runtime("vllm", checkpoint, length=length, gpu=gpu)

    return RuntimeChoice("vllm", batch_size or BATCH_SIZES["vllm"], opened)


def try_vllm(checkpoint: Checkpoint, length: int, gpu: int | None, stack: ExitStack, report: Report) -> Runtime | None:
    """Start vLLM and generate one token as a test; returns the runtime.

    If that fails, returns None and reports the reason.
    """
    runtime = open_runtime("vllm", checkpoint, length=length, gpu=gpu)
    stack.callback(runtime.close)
    try:
        runtime.generate([[0]], Sampling(1), [0])
    except VllmFailedError as error:
        report({"runtime": "transformers", "reason": f"vLLM failed: {error}"})
        return None
    return runtime
