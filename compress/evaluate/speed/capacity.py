"""Predict whether a checkpoint fits on hardware, from the sizes of weights, KV cache and overhead.

Each `CapacityRow` is one checkpoint on one hardware. The numbers come from config.json and from the headers of the
weight files; no model is loaded. A KV cache holds a key and a value for each block, KV head and token. On a GPU, vLLM
allocates it in pages of 16 tokens.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any, cast

from compress.checkpoint.formats import model_dtype
from compress.checkpoint.hub import model_name
from compress.checkpoint.load import check_causal_lm, open_causal_lm
from compress.checkpoint.read import Checkpoint, read_json
from compress.core.config import QuantizeConfig
from compress.core.dtypes import Dtype
from compress.core.errors import QCompressError
from compress.core.rows import CapacityRow
from compress.core.units import format_bytes
from compress.evaluate.names import unique_names
from compress.evaluate.speed.hardware import Hardware, kernel_of, unsupported_reason
from compress.model.architectures import FULL, SLIDING
from compress.model.shapes import block_lists, find_vocabulary, sliding_window
from compress.quantize.layout.plan import make_plan, read_source

Row = dict[str, Any]
PAGE = 16  # tokens in a page of the KV cache on a GPU; vLLM's word for a page is block
CHUNK = 2048  # prompt tokens that vLLM processes in one step: the smallest of its defaults
SEQUENCES = 256  # vLLM's default max_num_seqs: it reserves memory for the logits of this many requests
LIBRARIES = 600_000_000  # bytes for CUDA context, kernels and workspaces: assumed, not measured


@dataclass(frozen=True)
class KvBlock:
    """The KV cache of one decoder block: bytes per token, and the sliding window in tokens.

    A window of None keeps every token.
    """

    bytes: int
    window: int | None = None


@dataclass(frozen=True)
class ModelFootprint:
    """The sizes of an existing or a planned checkpoint that a prediction needs, in bytes."""

    path: Path
    name: str
    config: dict[str, Any]
    weights: int  # on the device
    read: int  # the part of `weights` that each decoded token reads
    blocks: tuple[KvBlock, ...] = field(repr=False)

    @property
    def context_limit(self) -> int:
        return int(self.config.get("max_position_embeddings") or 0)

    @property
    def kv_bytes_per_token(self) -> int:
        return sum(block.bytes for block in self.blocks)


def kv_blocks_of(config: dict[str, Any]) -> tuple[KvBlock, ...]:
    """The KV cache of every decoder block.

    Raises QCompressError if the architecture has any other cache than keys and values.
    """
    for key in ("kv_lora_rank", "state_size", "linear_num_key_heads"):
        if config.get(key):
            raise QCompressError(
                f"config.json: {key} {config[key]} is not supported: bench predicts only plain key-value caches"
            )
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    size = 2 * kv_heads * head_dim * served_dtype(config).itemsize
    return tuple(KvBlock(size, window) for window in windows_of(config))


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
    return sum(block.bytes * math.ceil(count / page) * page for block, count in zip(blocks, cached, strict=True))


def longest_within(blocks: Sequence[KvBlock], room: int, limit: int) -> int:
    """The tokens of the longest request whose KV cache fits in `room` bytes, at most `limit`."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if kv_bytes(blocks, middle) <= room else (low, middle - 1)
    return low


def overhead(config: dict[str, Any]) -> int:
    """The bytes that a model needs besides weights and KV cache.

    They are libraries, activations of one chunk of tokens, float32 logits, and the sampler's copy of the logits. Per
    token, residuals, attention and MLP are counted as 4 x hidden + 3 x intermediate activations.
    """
    hidden, intermediate = config["hidden_size"], config.get("intermediate_size") or 4 * config["hidden_size"]
    chunk = CHUNK * (4 * hidden + 3 * intermediate) * served_dtype(config).itemsize
    logits = 2 * SEQUENCES * config["vocab_size"] * 4
    return LIBRARIES + chunk + logits


def read_footprint(path: Path) -> ModelFootprint:
    """The footprint of a checkpoint. A config.json also works, or a folder that contains only a config.json."""
    if path.is_dir() and any(path.glob("*.safetensors*")):
        return checkpoint_footprint(open_causal_lm(path, readable=False))
    file = path / "config.json" if path.is_dir() else path
    config = read_json(file)
    check_causal_lm(file.parent, config)
    source = read_source(path)
    sizes = {name: prod(shape) * source.dtype.itemsize for name, shape in source.shapes.items()}
    name = path.stem if path.is_file() else path.name
    return make_footprint(path, name, config, sizes)


def read_footprints(paths: Sequence[Path]) -> list[ModelFootprint]:
    """The footprint of each path. Footprints with equal names are named by their paths."""
    footprints = [read_footprint(path) for path in paths]
    names = unique_names([one.name for one in footprints], paths)
    return [replace(one, name=name) for one, name in zip(footprints, names, strict=True)]


def checkpoint_footprint(checkpoint: Checkpoint) -> ModelFootprint:
    """The footprint of a checkpoint with weights. float32 tensors count 16 bits, because vLLM converts them."""
    size = served_dtype(checkpoint.config).itemsize
    sizes = {
        name: prod(info.shape) * size if info.dtype == Dtype.float32 else info.bytes
        for name, info in checkpoint.tensors.items()
    }
    return make_footprint(checkpoint.path, model_name(checkpoint.path), checkpoint.config, sizes)


def packed_footprint(plain: ModelFootprint, layout: str) -> ModelFootprint:
    """The footprint that a 16-bit checkpoint would have after quantization to 4 bits in the format `layout`."""
    source = read_source(plain.path)
    plan = make_plan(source, QuantizeConfig(method="rtn", format=layout))
    sizes = {spec.name: spec.bytes for spec in plan.specs}
    config = source.model | {"quantization_config": {"quant_method": layout}}
    return make_footprint(plain.path, f"{plain.name} as {layout}", config, sizes)


def make_footprint(path: Path, name: str, config: dict[str, Any], sizes: dict[str, int]) -> ModelFootprint:
    """The footprint for these tensor sizes.

    Each decoded token reads all weights, except an embedding that is not also the head.
    """
    vocabulary = find_vocabulary(config)
    table = sum(size for tensor, size in sizes.items() if tensor.startswith(f"{vocabulary.embedding}."))
    total = sum(sizes.values())
    return ModelFootprint(path, name, config, total, total if vocabulary.tied else total - table, kv_blocks_of(config))


def predict_rows(
    footprints: Sequence[ModelFootprint], hardware: Sequence[Hardware], prompt_tokens: int, new_tokens: int
) -> list[CapacityRow]:
    """One row per checkpoint and hardware. Raises QCompressError if a request is longer than a model's context."""
    for one in footprints:
        check_context(one.path, one.config, prompt_tokens + new_tokens)
    return [
        predict(one, place, prompt_tokens, new_tokens, index)
        for index, one in enumerate(footprints)
        for place in hardware
    ]


def predict_paths(
    paths: Sequence[Path], hardware: Sequence[Hardware], packed: str | None, prompt_tokens: int, new_tokens: int
) -> list[CapacityRow]:
    """The predictions for these paths.

    If `packed` names a format, each unquantized checkpoint gets a second prediction, as if quantized to this format.
    """
    footprints = []
    for one in read_footprints(paths):
        footprints.append(one)
        if packed and "quantization_config" not in one.config:
            footprints.append(packed_footprint(one, packed))
    return predict_rows(footprints, hardware, prompt_tokens, new_tokens)


def check_context(path: Path, config: dict[str, Any], tokens: int) -> None:
    """Raises QCompressError if a request has more tokens than the model's context."""
    limit = config.get("max_position_embeddings")
    if limit and tokens > limit:
        raise QCompressError(
            f"{path}: a request of {tokens:,} tokens is longer than the model's context of {limit:,}; "
            "lower --prompt-tokens or --new-tokens"
        )


def predict(model: ModelFootprint, hardware: Hardware, prompt_tokens: int, new_tokens: int, index: int) -> CapacityRow:
    """The row of one checkpoint on one hardware. `index` is the checkpoint's number; 0 is the reference."""
    row: Row = {
        "kind": "predicted",
        "name": model.name,
        "path": str(model.path),
        "role": "candidate" if index else "reference",
        "digest": None,
        **hardware_facts(hardware, model.config),
        "weights_bytes": model.weights,
        "overhead_bytes": overhead(model.config),
        "kv_bytes_per_token": model.kv_bytes_per_token,
        **fit_facts(model, hardware, prompt_tokens, new_tokens),
    }
    return cast("CapacityRow", row)


def hardware_facts(hardware: Hardware, config: dict[str, Any]) -> Row:
    """The part of a row that describes the hardware."""
    return {
        "hardware": hardware.name,
        "hardware_title": hardware.title,
        "memory_bytes": hardware.memory,
        "usable_bytes": hardware.usable,
        "bandwidth_bytes_per_s": hardware.bandwidth,
        "capability": None if hardware.capability is None else f"{hardware.capability / 10:.1f}",
        "kernel": kernel_of(hardware, config),
        "note": hardware.note,
    }


def fit_facts(model: ModelFootprint, hardware: Hardware, prompt_tokens: int, new_tokens: int) -> Row:
    """The part of a row that states whether and how much fits."""
    tokens = prompt_tokens + new_tokens
    request = kv_bytes(model.blocks, tokens)
    room = hardware.usable - model.weights - overhead(model.config)
    unsupported = unsupported_reason(hardware, model.config)
    fits = unsupported is None and request <= room
    return {
        "kv_bytes_per_request": request,
        "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens,
        "request_tokens": tokens,
        "max_requests": SEQUENCES,
        "fits": fits,
        "reason": unsupported or (None if fits else f"{format_bytes(request - room, short=False)} too much"),
        "context_limit": model.context_limit,
        "longest_context": 0 if unsupported else longest_within(model.blocks, room, model.context_limit),
        "largest_batch": 0 if unsupported else min(max(room // request, 0), SEQUENCES),
        "decode_tokens_per_s_estimate": estimate(model, hardware, prompt_tokens + new_tokens // 2) if fits else None,
    }


def estimate(model: ModelFootprint, hardware: Hardware, tokens: int) -> float | None:
    """An upper bound of decoded tokens per second at batch size 1: bandwidth over the bytes that a token reads."""
    if hardware.bandwidth is None:
        return None
    return hardware.bandwidth / (model.read + kv_bytes(model.blocks, tokens))
