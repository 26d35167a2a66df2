"""vLLM as a timed engine:  python -m compress.runtimes.vllm_timed REQUEST.json LINES.jsonl

The engine runs in this very process, so that its memory is this process's, with no prefix cache and no end token. On a
CPU it is not compiled, and `kv_cache_gib` sets its KV cache; on a GPU vLLM takes `memory` bytes, or its usual share.
"""

import os
import platform
import sys
from collections.abc import Sequence
from typing import Any

from compress.core.timing import Ids, Row, resident_peak, run_worker
from compress.runtimes.vllm_offline import ENVIRONMENT, open_vllm

SHARE = 0.92  # vLLM's default


class VllmEngine:
    """A checkpoint as vLLM serves it."""

    def __init__(self, request: Row):
        import torch

        self.request, self.cuda = request, torch.cuda.is_available()
        self.baseline = self.peak_bytes()
        options: Row = {"max_num_seqs": request["max_batch"], "disable_log_stats": False}
        if self.cuda:
            options |= {"enforce_eager": False, "gpu_memory_utilization": self.share()}
        length = request["prompt_tokens"] + request["new_tokens"]
        self.llm: Any = open_vllm(request["checkpoint"], dtype=request["dtype"], max_model_len=length, **options)
        self.config: Any = self.llm.llm_engine.vllm_config

    def share(self) -> float:
        """Of the GPU's memory, for vLLM."""
        import torch

        total = torch.cuda.get_device_properties(0).total_memory
        return min(SHARE, self.request["memory"] / total) if self.request["memory"] else SHARE

    def facts(self) -> Row:
        import torch
        import vllm

        cache = self.config.cache_config
        tokens = cache.num_gpu_blocks * cache.block_size
        return {
            "engine": "vllm",
            "engine_version": vllm.__version__,
            "device": torch.cuda.get_device_name() if self.cuda else f"cpu ({platform.machine()})",
            "threads": torch.get_num_threads(),
            "dtype": str(self.config.model_config.dtype).removeprefix("torch."),
            "baseline_bytes": self.baseline,
            "kv_cache_bytes": tokens * self.request["kv_bytes_per_token"],
            "kv_cache_tokens": tokens,
            "kv_blocks": cache.num_gpu_blocks,
            "kv_block_size": cache.block_size,
            "note": None,
        }

    def generate(self, prompts: Sequence[Ids], new_tokens: int) -> None:
        from vllm import SamplingParams

        exact = SamplingParams(temperature=0, max_tokens=new_tokens, ignore_eos=True)
        self.llm.generate([{"prompt_token_ids": ids} for ids in prompts], exact, use_tqdm=False)

    def peak_bytes(self) -> int:
        import torch

        return torch.cuda.max_memory_reserved() if self.cuda else resident_peak()

    def largest_batch(self, peaks: dict[int, int]) -> tuple[int, str]:
        """vLLM's own count of requests of this length, without the block that it keeps for itself."""
        cache = self.config.cache_config
        blocks, limit = cache.num_gpu_blocks, self.config.scheduler_config.max_num_seqs
        count = int(cache.kv_cache_max_concurrency * (blocks - 1) / blocks + 1e-9)
        return (limit, "--max-batch") if count > limit else (count, "vLLM's KV cache")

    def preemptions(self) -> int:
        return sum(metric.value for metric in self.llm.get_metrics() if metric.name == "vllm:num_preemptions")


if __name__ == "__main__":
    os.environ |= ENVIRONMENT | os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    run_worker(VllmEngine, sys.argv[1:])
