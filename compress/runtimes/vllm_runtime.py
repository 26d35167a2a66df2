"""vLLM as a runtime in this process, so that the memory of this process includes vLLM's.

python -m compress.runtimes.vllm_runtime REQUEST.json LINES.jsonl
    measures a checkpoint for `qcompress bench`; compress/runtimes/timing.py describes both files

`bench` turns off the prefix cache and ignores the end token. On a CPU, vLLM does not compile the model, and
`--kv-cache` sets the size of the KV cache. On a GPU, vLLM uses `memory` bytes, or its default share of the memory.
"""

import os
import platform
import sys
from collections.abc import Sequence
from typing import Any

from compress.core.sampling import Answer, Ids, Sampling
from compress.runtimes.timing import Row, resident_peak, run_worker
from compress.runtimes.vllm_offline import ENVIRONMENT, Dtype, open_vllm

SHARE = 0.92  # vLLM's default gpu_memory_utilization


class VllmRuntime:
    """A checkpoint in vLLM. vLLM's `LLM` receives `options`.

    `kv_bytes_per_token` converts vLLM's cache size to bytes.
    """

    def __init__(
        self, checkpoint: str, length: int, *, dtype: Dtype = "auto", kv_bytes_per_token: int = 0, **options: Any
    ) -> None:
        import torch

        self.cuda, self.kv_bytes_per_token = torch.cuda.is_available(), kv_bytes_per_token
        self.baseline = self.peak_bytes()
        self.llm: Any = open_vllm(checkpoint, dtype=dtype, max_model_len=length, **options)

    def generate(self, prompts: Sequence[Ids], sampling: Sampling, seeds: Sequence[int] = ()) -> list[Answer]:
        from vllm import SamplingParams

        options: dict[str, Any] = {"temperature": sampling.temperature, "max_tokens": sampling.max_tokens}
        if sampling.temperature:
            params = [SamplingParams(**options, top_p=sampling.top_p, seed=seed) for seed in seeds]
        else:
            params = [SamplingParams(**options)] * len(prompts)
        results = self.llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
        return [answer_of(result.outputs[0]) for result in results]

    def close(self) -> None:
        self.llm = None

    def facts(self) -> Row:
        import torch
        import vllm

        config = self.llm.llm_engine.vllm_config
        cache = config.cache_config
        tokens = cache.num_gpu_blocks * cache.block_size
        return {
            "runtime": "vllm",
            "runtime_version": vllm.__version__,
            "device": torch.cuda.get_device_name() if self.cuda else f"cpu ({platform.machine()})",
            "threads": torch.get_num_threads(),
            "dtype": str(config.model_config.dtype).removeprefix("torch."),
            "baseline_bytes": self.baseline,
            "kv_cache_bytes": tokens * self.kv_bytes_per_token,
            "kv_cache_tokens": tokens,
            "kv_blocks": cache.num_gpu_blocks,
            "kv_block_size": cache.block_size,
            "note": None,
        }

    def generate_exactly(self, prompts: Sequence[Ids], new_tokens: int) -> None:
        from vllm import SamplingParams

        exact = SamplingParams(temperature=0, max_tokens=new_tokens, ignore_eos=True)
        self.llm.generate([{"prompt_token_ids": ids} for ids in prompts], exact, use_tqdm=False)

    def peak_bytes(self) -> int:
        import torch

        return torch.cuda.max_memory_reserved() if self.cuda else resident_peak()

    def largest_batch(self) -> tuple[int, str] | None:
        """The number of requests that fit in vLLM's cache without its reserved page, at most `max_num_seqs`."""
        config = self.llm.llm_engine.vllm_config
        cache, limit = config.cache_config, config.scheduler_config.max_num_seqs
        pages = cache.num_gpu_blocks
        count = int(cache.kv_cache_max_concurrency * (pages - 1) / pages + 1e-9)
        return (limit, "--max-batch-size") if count > limit else (count, "vLLM's KV cache")

    def preemptions(self) -> int:
        return sum(metric.value for metric in self.llm.get_metrics() if metric.name == "vllm:num_preemptions")


def answer_of(output: Any) -> Answer:
    """The answer in a vLLM output, without the end token."""
    ended = output.finish_reason == "stop"
    return Answer(list(output.token_ids)[: -1 if ended else None], ended)


def memory_share(memory: int | None) -> float:
    """The share of the GPU's memory that vLLM may use, 0 to 1.

    It amounts to `memory` bytes, but is at most vLLM's default share.
    """
    import torch

    total = torch.cuda.get_device_properties(0).total_memory
    return min(SHARE, memory / total) if memory else SHARE


def open_timed(request: Row) -> VllmRuntime:
    """Open the runtime that a request of `qcompress bench` describes."""
    import torch

    options: Row = {"max_num_seqs": request["max_batch_size"], "disable_log_stats": False}
    if torch.cuda.is_available():
        options |= {"enforce_eager": False, "gpu_memory_utilization": memory_share(request["memory"])}
    options |= {"dtype": request["dtype"], "kv_bytes_per_token": request["kv_bytes_per_token"]}
    return VllmRuntime(request["checkpoint"], request["prompt_tokens"] + request["new_tokens"], **options)


if __name__ == "__main__":
    os.environ |= ENVIRONMENT | os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    run_worker(open_timed, sys.argv[1:])
