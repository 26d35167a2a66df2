"""Will it fit? Weights, KV cache and an allowance, from config.json and the headers of the weights; no model is loaded.

A row of `predict_rows`, bytes and seconds throughout:
    kind name path role digest          "predicted"; role is "reference" for the first checkpoint; digest None
    board board_title                   a name of boards.BOARDS, or "gpu-memory"
    memory_bytes usable_bytes           of the board; the part of it that vLLM may take
    bandwidth_bytes_per_s capability    None where not known; "8.7"
    kernel note                         vLLM's 4-bit kernel there; what else to know of the board
    weights_bytes                       on the device
    overhead_bytes                      the allowance for everything that is neither weights nor KV cache
    kv_bytes_per_token                  while no sliding window is full
    kv_bytes_per_request                of one request of request_tokens
    prompt_tokens new_tokens request_tokens
    fits reason                         whether one such request fits; the reason when it does not
    context_limit longest_context       the model's; at batch 1
    largest_batch                       requests of request_tokens at a time, at most SEQUENCES
    decode_tokens_per_s_estimate        batch 1; an upper bound from bandwidth alone, None where that is not known

A KV cache holds a key and a value per block, KV head and token. vLLM gives it out in blocks of 16 tokens on a GPU.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

import torch

from compress.checkpoint.formats import model_dtype
from compress.checkpoint.load import check_causal_lm, open_causal_lm
from compress.checkpoint.read import Checkpoint, read_json
from compress.core.config import QuantizeConfig
from compress.core.errors import QCompressError
from compress.evaluate.names import tell_apart
from compress.evaluate.speed.hardware import Board, kernel_of, refusal
from compress.model.blocks import find_vocabulary
from compress.quantize.layout.plan import make_plan, read_source

Row = dict[str, Any]
PAGE = 16  # tokens in what vLLM calls a block of its KV cache, on a GPU
CHUNK = 2048  # tokens that vLLM reads at a time, the least of its defaults
SEQUENCES = 256  # requests whose logits vLLM makes room for, its default
LIBRARIES = 600_000_000  # CUDA context, kernels, workspaces: an allowance, not measured


@dataclass(frozen=True)
class KvBlock:
    """What a block keeps of each token, in bytes, and of how many tokens at most (None: of all)."""

    bytes: int
    window: int | None = None


@dataclass(frozen=True)
class Subject:
    """A checkpoint, or what one would be: all that a prediction needs."""

    path: Path
    name: str
    config: dict[str, Any]
    weights: int  # bytes on the device
    read: int  # bytes of them that every decoded token reads
    blocks: tuple[KvBlock, ...] = field(repr=False)

    @property
    def context_limit(self) -> int:
        return int(self.config.get("max_position_embeddings") or 0)

    @property
    def kv_bytes_per_token(self) -> int:
        return sum(block.bytes for block in self.blocks)


def kv_blocks_of(config: dict[str, Any]) -> tuple[KvBlock, ...]:
    """The KV cache of every block. QCompressError for architectures whose cache is of another kind."""
    for key in ("kv_lora_rank", "state_size", "linear_num_key_heads"):
        if config.get(key):
            raise QCompressError(f"config.json: {key} {config[key]}: only caches of whole keys and values are counted")
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    width = config.get("head_dim") or config["hidden_size"] // heads
    size = 2 * kv_heads * width * served_dtype(config).itemsize
    return tuple(KvBlock(size, window) for window in windows_of(config))


def windows_of(config: dict[str, Any]) -> list[int | None]:
    """Per block, how many tokens its attention sees; None for all of them."""
    count, window = config["num_hidden_layers"], config.get("sliding_window")
    kinds = config.get("layer_types")
    if kinds:
        if strange := set(kinds) - {"full_attention", "sliding_attention"}:
            raise QCompressError(f"config.json: layer type {min(strange)}: only caches of keys and values are counted")
        return [window if kind == "sliding_attention" else None for kind in kinds]
    return [window if window and slides(config, block) else None for block in range(count)]


def slides(config: dict[str, Any], block: int) -> bool:
    """Whether a block has a sliding window, in the words of configs that list no layer_types."""
    kind = config.get("model_type")
    if kind in ("qwen2", "qwen3"):
        return bool(config.get("use_sliding_window")) and block >= config.get("max_window_layers", 0)
    if kind == "gemma2":
        return block % 2 == 0
    if kind == "gemma3_text":
        return bool((block + 1) % config.get("sliding_window_pattern", 6))
    return True


def served_dtype(config: dict[str, Any]) -> torch.dtype:
    """What vLLM computes in: the config's dtype, float16 for float32."""
    dtype = model_dtype(config)
    return torch.float16 if dtype == torch.float32 else dtype


def kv_bytes(blocks: Sequence[KvBlock], tokens: int, page: int = PAGE) -> int:
    """Bytes of one request's cache after `tokens`, in whole pages."""
    held = [tokens if block.window is None else min(tokens, block.window) for block in blocks]
    return sum(block.bytes * math.ceil(count / page) * page for block, count in zip(blocks, held, strict=True))


def longest_within(blocks: Sequence[KvBlock], room: int, limit: int) -> int:
    """The most tokens of one request whose cache fits `room` bytes, at most `limit`."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if kv_bytes(blocks, middle) <= room else (low, middle - 1)
    return low


def overhead(config: dict[str, Any]) -> int:
    """Bytes beside weights and KV cache: libraries, a chunk's activations, and float32 logits with the sampler's copy.

    Of a chunk live the residual twice, the attention's and the MLP's widest activations: 4 x hidden + 3 x intermediate.
    """
    width, middle = config["hidden_size"], config.get("intermediate_size") or 4 * config["hidden_size"]
    chunk = CHUNK * (4 * width + 3 * middle) * served_dtype(config).itemsize
    logits = 2 * SEQUENCES * config["vocab_size"] * 4
    return LIBRARIES + chunk + logits


def read_subject(path: Path) -> Subject:
    """A checkpoint by its headers, or a config.json (a file, or alone in its folder) by its shapes."""
    if path.is_dir() and any(path.glob("*.safetensors*")):
        return checkpoint_subject(open_causal_lm(path))
    file = path / "config.json" if path.is_dir() else path
    config = read_json(file)
    check_causal_lm(file.parent, config)
    source = read_source(path)
    sizes = {name: prod(shape) * source.dtype.itemsize for name, shape in source.shapes.items()}
    name = path.stem if path.is_file() else path.name
    return make_subject(path, name, config, sizes)


def read_subjects(paths: Sequence[Path]) -> list[Subject]:
    """`read_subject` of each path, under names that tell them apart."""
    subjects = [read_subject(path) for path in paths]
    names = tell_apart([subject.name for subject in subjects], paths)
    return [replace(subject, name=name) for subject, name in zip(subjects, names, strict=True)]


def checkpoint_subject(checkpoint: Checkpoint) -> Subject:
    """float32 tensors become 16 bits where vLLM computes in them."""
    size = served_dtype(checkpoint.config).itemsize
    sizes = {
        name: prod(info.shape) * size if info.dtype == torch.float32 else info.bytes
        for name, info in checkpoint.tensors.items()
    }
    return make_subject(checkpoint.path, checkpoint.path.resolve().name, checkpoint.config, sizes)


def packed_subject(plain: Subject, layout: str) -> Subject:
    """What a 16-bit checkpoint or config.json would be in 4 bits, in the format `layout`."""
    source = read_source(plain.path)
    plan = make_plan(source, QuantizeConfig(method="rtn", format=layout))
    sizes = {spec.name: spec.bytes for spec in plan.specs}
    config = source.model | {"quantization_config": {"quant_method": layout}}
    return make_subject(plain.path, f"{plain.name} as {layout}", config, sizes)


def make_subject(path: Path, name: str, config: dict[str, Any], sizes: dict[str, int]) -> Subject:
    """A looked-up embedding reads one row a token, a tied one is also the head and is read as a whole."""
    vocabulary = find_vocabulary(config)
    table = sum(size for tensor, size in sizes.items() if tensor.startswith(f"{vocabulary.embedding}."))
    total = sum(sizes.values())
    return Subject(path, name, config, total, total if vocabulary.tied else total - table, kv_blocks_of(config))


def predict_rows(subjects: Sequence[Subject], boards: Sequence[Board], prompt: int, new: int) -> list[Row]:
    """One row per checkpoint and board. QCompressError when the request is longer than a model's context."""
    for subject in subjects:
        check_context(subject.path, subject.config, prompt + new)
    return [predict(subject, board, prompt, new, index) for index, subject in enumerate(subjects) for board in boards]


def check_context(path: Path, config: dict[str, Any], tokens: int) -> None:
    """QCompressError when a request of `tokens` is longer than the model's context."""
    limit = config.get("max_position_embeddings")
    if limit and tokens > limit:
        raise QCompressError(
            f"{path}: a request of {tokens:,} tokens is longer than its context of {limit:,}; "
            "lower --prompt-tokens or --new-tokens"
        )


def predict(subject: Subject, board: Board, prompt: int, new: int, index: int) -> Row:
    """The row of one checkpoint on one board."""
    config, tokens = subject.config, prompt + new
    extra, request = overhead(config), kv_bytes(subject.blocks, tokens)
    room = board.usable - subject.weights - extra
    refused = refusal(board, config)
    fits = refused is None and request <= room
    return {
        "kind": "predicted",
        "name": subject.name,
        "path": str(subject.path),
        "role": "candidate" if index else "reference",
        "digest": None,
        "board": board.name,
        "board_title": board.title,
        "memory_bytes": board.memory,
        "usable_bytes": board.usable,
        "bandwidth_bytes_per_s": board.bandwidth,
        "capability": None if board.capability is None else f"{board.capability / 10:.1f}",
        "kernel": kernel_of(board, config),
        "note": board.note,
        "weights_bytes": subject.weights,
        "overhead_bytes": extra,
        "kv_bytes_per_token": subject.kv_bytes_per_token,
        "kv_bytes_per_request": request,
        "prompt_tokens": prompt,
        "new_tokens": new,
        "request_tokens": tokens,
        "fits": fits,
        "reason": refused or (None if fits else f"{request - room:,} bytes too many"),
        "context_limit": subject.context_limit,
        "longest_context": 0 if refused else longest_within(subject.blocks, room, subject.context_limit),
        "largest_batch": 0 if refused else min(max(room // request, 0), SEQUENCES),
        "decode_tokens_per_s_estimate": estimate(subject, board, prompt + new // 2) if fits else None,
    }


def estimate(subject: Subject, board: Board, tokens: int) -> float | None:
    """Decoded tokens per second at batch 1 if reading weights and cache were all: an upper bound."""
    if board.bandwidth is None:
        return None
    return board.bandwidth / (subject.read + kv_bytes(subject.blocks, tokens))
