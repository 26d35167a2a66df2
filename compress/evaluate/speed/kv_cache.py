"""The KV cache of vLLM: its dtypes, the bytes per token and request, and the hardware that supports a dtype.

A KV cache holds a key and a value for each block, KV head and token. On a GPU, vLLM allocates it in pages of 16 tokens.
Dtypes and limits are from the source of vLLM 0.32.0: config/cache.py, v1/attention/backends/triton_attn.py (one float32
scale per token and head beside the numbers; fp8 needs compute capability 8.9) and flashinfer.py (fp8 from 8.0 on, for
the listed head sizes).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from compress.checkpoint.formats import model_dtype
from compress.core.config import KV_DTYPES
from compress.core.dtypes import Dtype
from compress.core.errors import QCompressError
from compress.model.architectures import FULL, SLIDING
from compress.model.caches import full_config, other_caches
from compress.model.shapes import block_lists, sliding_window

PAGE = 16  # tokens in a page of the KV cache on a GPU; vLLM's word for a page is block
AUTO, FP8, INT8, INT4 = KV_DTYPES
BITS = {FP8: 8, INT8: 8, INT4: 4}
SCALE = {INT8: 4, INT4: 4}  # bytes per token and head, each for keys and values
FLASHINFER, FLASHINFER_HEADS = 80, (64, 128, 256, 512)  # lowest compute capability times ten; head sizes
TRITON_FP8 = 89  # lowest compute capability, times ten, of fp8 without FlashInfer


@dataclass(frozen=True)
class KvBlock:
    """The cache of one decoder block: bytes per token, and the sliding window in tokens.

    A window of None keeps every token. `fixed` are bytes that do not grow, such as the state of a Mamba.
    """

    bytes: int
    window: int | None = None
    fixed: int = 0


def kv_blocks_of(config: dict[str, Any], dtype: str = AUTO, gpus: int = 1) -> tuple[KvBlock, ...]:
    """The KV cache of every decoder block in one of KV_DTYPES, summed over `gpus` GPUs that share the model.

    With more GPUs than KV heads, each GPU holds a copy of one head.

    Raises QCompressError if the cache of the architecture is unknown.
    """
    if config.get("state_size"):
        raise QCompressError(
            f"config.json: state_size {config['state_size']} is not supported: bench knows no cache of Mamba 1"
        )
    size = 2 * max(kv_heads_of(config), gpus) * head_bytes(config, dtype)
    caches = other_caches(full_config(config), served_dtype(config).itemsize, size, gpus)
    if caches is not None:
        return tuple(KvBlock(*cache) for cache in caches)
    return tuple(KvBlock(size, window) for window in windows_of(config))


def kv_heads_of(config: dict[str, Any]) -> int:
    return int(config.get("num_key_value_heads") or config["num_attention_heads"])


def head_size_of(config: dict[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def head_bytes(config: dict[str, Any], dtype: str) -> int:
    """The bytes of the key, or the value, of one token in one head."""
    size = head_size_of(config)
    if dtype == AUTO:
        return size * served_dtype(config).itemsize
    return size * BITS[dtype] // 8 + SCALE.get(dtype, 0)


def unsupported_dtype(dtype: str, config: dict[str, Any], capability: int | None) -> str | None:
    """The reason why vLLM has no KV cache of this dtype for a model on a compute capability (times ten), or None."""
    size = head_size_of(config)
    if dtype == INT4 and size & (size - 1):
        return f"a KV cache in {INT4} needs a head size that is a power of 2, and this model's is {size}"
    if dtype != FP8 or capability is None or capability >= TRITON_FP8:
        return None
    if capability < FLASHINFER:
        return "a KV cache in fp8 needs compute capability 8.0"
    if size not in FLASHINFER_HEADS:
        return f"a KV cache in fp8 with head size {size} needs compute capability 8.9"
    return None


def windows_of(config: dict[str, Any]) -> list[int | None]:
    """The attention window of each block in tokens, or None for full attention.

    All blocks of a model type without layer_types have the same window.
    """
    kinds = config.get("layer_types") or block_lists(config).get("layer_types")
    if others := {*(kinds or ())} - {FULL, SLIDING}:
        raise QCompressError(
            f"config.json: layer type {min(others)} is not supported: bench predicts only plain key-value caches"
        )
    if kinds and SLIDING not in kinds:
        return [None] * len(kinds)
    window = sliding_window(config)
    return [None if kind == FULL else window for kind in kinds or [SLIDING] * config["num_hidden_layers"]]


def served_dtype(config: dict[str, Any]) -> Dtype:
    """The dtype in which vLLM computes: that of the config, or float16 if the config has float32."""
    dtype = model_dtype(config)
    return Dtype.float16 if dtype == Dtype.float32 else dtype


def kv_bytes(blocks: Sequence[KvBlock], tokens: int, page: int = PAGE) -> int:
    """The KV-cache bytes of one request with this many tokens, rounded up to whole pages."""
    cached = [tokens if block.window is None else min(tokens, block.window) for block in blocks]
    grown = sum(block.bytes * math.ceil(count / page) * page for block, count in zip(blocks, cached, strict=True))
    return grown + sum(block.fixed for block in blocks)


def longest_within(blocks: Sequence[KvBlock], room: int, limit: int) -> int:
    """The tokens of the longest request whose KV cache fits in `room` bytes, at most `limit`."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if kv_bytes(blocks, middle) <= room else (low, middle - 1)
    return low
