"""transformers as a timed engine:  python -m compress.runtimes.transformers_timed REQUEST.json LINES.jsonl

Packed linears are dequantized when they are loaded: speed and memory are those of the plain model, and the row says so.
"""

import platform
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch

from compress.checkpoint.formats import model_dtype
from compress.checkpoint.load import load_model
from compress.checkpoint.read import read_json
from compress.core.timing import Ids, Row, resident_peak, run_worker

DEQUANTIZED = "transformers dequantizes packed weights: speed and memory are those of the plain model"


class TransformersEngine:
    """A checkpoint in its own dtype or the one that is asked for, on the GPU where torch finds one."""

    def __init__(self, request: Row):
        path, dtype = Path(request["checkpoint"]), request["dtype"]
        config = read_json(path / "config.json")
        self.request, self.packed = request, "quantization_config" in config
        self.cuda = torch.cuda.is_available()
        self.baseline = self.peak_bytes()
        model: Any = load_model(path, model_dtype(config) if dtype == "auto" else getattr(torch, dtype))
        self.model = model.to("cuda" if self.cuda else "cpu")

    def facts(self) -> Row:
        return {
            "engine": "transformers",
            "engine_version": version("transformers"),
            "device": torch.cuda.get_device_name() if self.cuda else f"cpu ({platform.machine()})",
            "threads": torch.get_num_threads(),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "baseline_bytes": self.baseline,
            "kv_cache_bytes": None,
            "kv_cache_tokens": None,
            "note": DEQUANTIZED if self.packed else None,
        }

    @torch.inference_mode()
    def generate(self, prompts: Sequence[Ids], new_tokens: int) -> None:
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

    def largest_batch(self, peaks: dict[int, int]) -> tuple[int, str]:
        """From the memory given and what a further request took; at least its KV cache, where that did not show."""
        few, many = min(peaks), max(peaks)
        each = (peaks[many] - peaks[few]) / (many - few) if many > few else 0
        each = max(each, self.request["kv_bytes_per_request"])
        room = (self.request["memory"] or self.memory()) - peaks[few]
        where = f"the peaks of batches of {few} and {many}" if many > few else "the KV cache alone"
        return max(0, few + int(room // each)), f"memory, by {where}"

    def memory(self) -> int:
        """What this process could hold at most."""
        if self.cuda:
            return int(torch.cuda.get_device_properties(0).total_memory)
        return int(psutil.virtual_memory().available + psutil.Process().memory_info().rss)

    def preemptions(self) -> int:
        return 0


if __name__ == "__main__":
    run_worker(TransformersEngine, sys.argv[1:])
