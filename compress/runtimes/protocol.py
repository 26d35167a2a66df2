"""`Runtime`: a loaded checkpoint that generates tokens. The adapters are in transformers_runtime.py and vllm_*.py.

    TransformersRuntime    in this process
    VllmProcess            vLLM in a separate process; that process holds a VllmRuntime
    VllmRuntime            vLLM in this process

`open_runtime` is the only place that picks an adapter.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Protocol

from compress.checkpoint.read import Checkpoint
from compress.core.device import pick_device
from compress.core.errors import QCompressError
from compress.core.sampling import Answer, Ids, Sampling

Row = dict[str, Any]
BATCH_SIZES = {"transformers": 8, "vllm": 128}  # vLLM schedules requests itself, so its batches need no padding


class Runtime(Protocol):
    """A loaded checkpoint that generates tokens."""

    def generate(self, prompts: Sequence[Ids], sampling: Sampling, seeds: Sequence[int] = ()) -> list[Answer]:
        """One answer per prompt. `seeds` holds one seed per prompt; greedy decoding ignores seeds."""

    def close(self) -> None:
        """Release the model's memory. A second call does nothing."""


class TimedRuntime(Runtime, Protocol):
    """A runtime with measurements for `qcompress bench`."""

    def facts(self) -> Row:
        """Runtime, version, device, dtype and memory, under the keys of a `SpeedRow`."""

    def generate_exactly(self, prompts: Sequence[Ids], new_tokens: int) -> None:
        """Generate exactly `new_tokens` tokens per prompt, greedily. The tokens are discarded."""

    def peak_bytes(self) -> int:
        """Peak memory so far, in bytes."""

    def largest_batch(self) -> tuple[int, str] | None:
        """The number of concurrent requests that fit, and its source. None if the runtime has no fixed KV cache."""

    def preemptions(self) -> int:
        """The number of times that a request has waited for memory. 0 if the runtime never makes requests wait."""


@dataclass(frozen=True)
class RuntimeChoice:
    """A choice of runtime: its name, the prompts per batch, and a function that opens it.

    `open` takes a checkpoint and the number of tokens of the longest request.
    """

    name: str
    batch_size: int
    open: Callable[[Checkpoint, int], Runtime]


def pick_runtime(name: str = "auto", device: str = "auto") -> str:
    """The runtime to use, "transformers" or "vllm". "auto" means vLLM if it is installed.

    Raises QCompressError if `name` is "vllm" and vLLM is not usable.
    """
    reason = None
    if name != "transformers":
        if find_spec("vllm") is None:
            reason = "vLLM is not installed; install it with `pip install vllm`"
        elif pick_device(device) != pick_device("auto"):
            reason = f"vLLM cannot run on --device {device} beside a GPU; use --device auto"
    if name == "vllm" and reason:
        raise QCompressError(f"--runtime vllm: {reason}, or use --runtime transformers")
    return "vllm" if name != "transformers" and reason is None else "transformers"


def open_runtime(
    name: str,
    checkpoint: Checkpoint,
    *,
    length: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    gpu: int | None = None,
) -> Runtime:
    """Load the checkpoint in the runtime called `name`.

    `length` is the maximum number of tokens of a prompt with its answer; None means the model's limit. `dtype` "auto"
    means the checkpoint's dtype. `gpu` is the number of the GPU to use.
    """
    if name == "vllm":
        from compress.runtimes.vllm_process import VllmProcess

        return VllmProcess(checkpoint, length, dtype=dtype, gpu=gpu)
    from compress.runtimes.transformers_runtime import TransformersRuntime

    return TransformersRuntime(checkpoint, device=device, dtype=dtype, gpu=gpu)
