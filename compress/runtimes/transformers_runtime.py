"""transformers as a runtime, in this process. Packed linears are dequantized when the checkpoint is loaded.

python -m compress.runtimes.transformers_runtime REQUEST.json LINES.jsonl
    measures a checkpoint for `qcompress bench`; compress/runtimes/timing.py describes both files
"""

import platform
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import torch

from compress.checkpoint.formats import model_dtype
from compress.checkpoint.load import load_model, open_causal_lm, stop_tokens
from compress.checkpoint.read import Checkpoint
from compress.core.device import pick_device
from compress.core.sampling import Answer, Ids, Sampling
from compress.model.sample import continue_prompts
from compress.runtimes.timing import Row, resident_peak, run_worker

DEQUANTIZED = "transformers dequantizes packed weights: speed and memory are those of the unquantized model"


def load_on_device(checkpoint: Checkpoint, device: str = "auto", dtype: str = "float32", gpu: int | None = None) -> Any:
    """Load the transformers model on its device. `dtype` "auto" means the checkpoint's dtype.

    If `gpu` is larger than the number of GPUs, counting starts again at the first GPU.
    """
    name = pick_device(device)
    if name == "cuda" and gpu is not None:
        name = f"cuda:{gpu % torch.cuda.device_count()}"
    stored = model_dtype(checkpoint.config).torch if dtype == "auto" else getattr(torch, dtype)
    model: Any = load_model(checkpoint, stored)
    return model.to(name)


class TransformersRuntime:
    """A checkpoint in transformers."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: str = "auto",
        dtype: str = "float32",
        gpu: int | None = None,
    ) -> None:
        self.cuda = pick_device(device) == "cuda"
        self.packed = "quantization_config" in checkpoint.config
        self.stops = stop_tokens(checkpoint)
        self.baseline = self.peak_bytes()
        self.model = load_on_device(checkpoint, device, dtype, gpu)

    def generate(self, prompts: Sequence[Ids], sampling: Sampling, seeds: Sequence[int] = ()) -> list[Answer]:
        return continue_prompts(self.model, prompts, sampling, self.stops, seeds)

    def close(self) -> None:
        self.model = None
        if self.cuda:
            torch.cuda.empty_cache()

    def facts(self) -> Row:
        return {
            "runtime": "transformers",
            "runtime_version": version("transformers"),
            "device": torch.cuda.get_device_name() if self.cuda else f"cpu ({platform.machine()})",
            "threads": torch.get_num_threads(),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "baseline_bytes": self.baseline,
            "kv_cache_bytes": None,
            "kv_cache_tokens": None,
            "note": DEQUANTIZED if self.packed else None,
        }

    @torch.inference_mode()
    def generate_exactly(self, prompts: Sequence[Ids], new_tokens: int) -> None:
        ids = torch.tensor([*prompts], device=self.model.device)
        self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            min_new_tokens=new_tokens,
            max_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=0,
        )
        if self.cuda:
            torch.cuda.synchronize()

    def peak_bytes(self) -> int:
        return torch.cuda.max_memory_reserved() if self.cuda else resident_peak()

    def largest_batch(self) -> tuple[int, str] | None:
        return None

    def preemptions(self) -> int:
        return 0


def open_timed(request: Row) -> TransformersRuntime:
    """Open the runtime that a request of `qcompress bench` describes."""
    checkpoint = open_causal_lm(request["checkpoint"])
    return TransformersRuntime(checkpoint, device=request["device"], dtype=request["dtype"])


if __name__ == "__main__":
    run_worker(open_timed, sys.argv[1:])
