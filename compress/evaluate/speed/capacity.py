"""Predict whether a checkpoint fits on hardware, from the sizes of weights, KV cache and overhead.

Each `CapacityRow` is one checkpoint on one hardware. The numbers come from config.json and from the headers of the
weight files; no model is loaded.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any, cast

from compress.checkpoint.check.candidate import Candidate
from compress.checkpoint.check.parallel_rules import split_fault
from compress.checkpoint.check.table import make_table
from compress.checkpoint.hub import model_name
from compress.checkpoint.load import check_causal_lm, open_causal_lm
from compress.checkpoint.read import Checkpoint, read_json
from compress.core.config import QuantizeConfig
from compress.core.dtypes import Dtype
from compress.core.errors import QCompressError
from compress.core.rows import CapacityRow
from compress.core.scheme import Scheme
from compress.core.units import format_bytes
from compress.evaluate.names import unique_names
from compress.evaluate.speed.hardware import Hardware, kernel_of, unsupported_reason
from compress.evaluate.speed.kv_cache import (
    AUTO,
    KvBlock,
    kv_blocks_of,
    kv_bytes,
    longest_within,
    served_dtype,
    unsupported_dtype,
)
from compress.model.shapes import find_vocabulary
from compress.model.wrappers import text_config
from compress.quantize.layout.plan import make_plan, read_source

Row = dict[str, Any]
CHUNK = 2048  # prompt tokens that vLLM processes in one step: the smallest of its defaults
SEQUENCES = 256  # vLLM's default max_num_seqs: it reserves memory for the logits of this many requests
LIBRARIES = 600_000_000  # bytes for CUDA context, kernels and workspaces: assumed, not measured


@dataclass(frozen=True)
class ModelFootprint:
    """The sizes of an existing or a planned checkpoint that a prediction needs, in bytes."""

    path: Path
    name: str
    config: dict[str, Any]
    weights: int  # on the device
    read: int  # the part of `weights` that each decoded token reads
    blocks: tuple[KvBlock, ...] = field(repr=False)
    schemes: Mapping[str, Scheme] = field(default_factory=dict, repr=False)  # of packed modules

    @property
    def context_limit(self) -> int:
        return int(self.config.get("max_position_embeddings") or 0)

    @property
    def kv_bytes_per_token(self) -> int:
        return sum(block.bytes for block in self.blocks)


def overhead(config: dict[str, Any], sequences: int = SEQUENCES) -> int:
    """The bytes that a model needs on each GPU besides weights and KV cache.

    They are libraries, activations of one chunk of tokens, float32 logits of `sequences` requests (vLLM's
    max_num_seqs), and the sampler's copy of the logits. Per token, residuals, attention and MLP are counted as
    4 x hidden + 3 x intermediate activations.
    """
    hidden, intermediate = config["hidden_size"], config.get("intermediate_size") or 4 * config["hidden_size"]
    chunk = CHUNK * (4 * hidden + 3 * intermediate) * served_dtype(config).itemsize
    logits = 2 * sequences * config["vocab_size"] * 4
    return LIBRARIES + chunk + logits


def read_footprint(path: Path) -> ModelFootprint:
    """The footprint of a checkpoint. A config.json also works, or a folder that contains only a config.json."""
    if path.is_dir() and any(path.glob("*.safetensors*")):
        return checkpoint_footprint(open_causal_lm(path, readable=False))
    file = path / "config.json" if path.is_dir() else path
    config = text_config(read_json(file))
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
    one = make_footprint(checkpoint.path, model_name(checkpoint.path), checkpoint.config, sizes, schemes_of(checkpoint))
    return replace(one, weights=one.weights + sum(info.bytes for info in checkpoint.carried.values()))


def schemes_of(checkpoint: Checkpoint) -> dict[str, Scheme]:
    """The scheme of each packed module whose scheme is valid."""
    if checkpoint.quantization is None:
        return {}
    candidate = Candidate(checkpoint, make_table(checkpoint.config))
    return {name: scheme for name, scheme in candidate.schemes.items() if scheme}


def packed_footprint(plain: ModelFootprint, layout: str) -> ModelFootprint:
    """The footprint that a 16-bit checkpoint would have after quantization to 4 bits in the format `layout`."""
    source = read_source(plain.path)
    plan = make_plan(source, QuantizeConfig(method="rtn", format=layout))
    sizes = {spec.name: spec.bytes for spec in plan.specs}
    config = source.model | {"quantization_config": {"quant_method": layout}}
    return make_footprint(plain.path, f"{plain.name} as {layout}", config, sizes, plan.schemes)


def make_footprint(
    path: Path, name: str, config: dict[str, Any], sizes: dict[str, int], schemes: Mapping[str, Scheme] | None = None
) -> ModelFootprint:
    """The footprint for these tensor sizes, and the schemes of packed modules.

    Each decoded token reads all weights, except an embedding that is not also the head.
    """
    vocabulary = find_vocabulary(config)
    table = sum(size for tensor, size in sizes.items() if tensor.startswith(f"{vocabulary.embedding}."))
    total = sum(sizes.values())
    read = total if vocabulary.tied else total - table
    return ModelFootprint(path, name, config, total, read, kv_blocks_of(config), schemes or {})


def predict_rows(
    footprints: Sequence[ModelFootprint],
    hardware: Sequence[Hardware],
    prompt_tokens: int,
    new_tokens: int,
    kv_dtype: str = AUTO,
) -> list[CapacityRow]:
    """One row per checkpoint and hardware. Raises QCompressError if a request is longer than a model's context."""
    for one in footprints:
        check_context(one.path, one.config, prompt_tokens + new_tokens)
    return [
        predict(one, place, prompt_tokens, new_tokens, index, kv_dtype)
        for index, one in enumerate(footprints)
        for place in hardware
    ]


def predict_paths(
    paths: Sequence[Path],
    hardware: Sequence[Hardware],
    packed: str | None,
    prompt_tokens: int,
    new_tokens: int,
    kv_dtype: str = AUTO,
) -> list[CapacityRow]:
    """The predictions for these paths.

    If `packed` names a format, each unquantized checkpoint gets a second prediction, as if quantized to this format.
    """
    footprints = []
    for one in read_footprints(paths):
        footprints.append(one)
        if packed and "quantization_config" not in one.config:
            footprints.append(packed_footprint(one, packed))
    return predict_rows(footprints, hardware, prompt_tokens, new_tokens, kv_dtype)


def check_context(
    path: Path, config: dict[str, Any], tokens: int, cure: str = "lower --prompt-tokens or --new-tokens"
) -> None:
    """Raises QCompressError if a request has more tokens than the model's context."""
    limit = config.get("max_position_embeddings")
    if limit and tokens > limit:
        raise QCompressError(
            f"{path}: a request of {tokens:,} tokens is longer than the model's context of {limit:,}; {cure}"
        )


def predict(
    model: ModelFootprint,
    hardware: Hardware,
    prompt_tokens: int,
    new_tokens: int,
    index: int,
    kv_dtype: str = AUTO,
) -> CapacityRow:
    """The row of one checkpoint on one hardware. `index` is the checkpoint's number; 0 is the reference."""
    model = replace(model, blocks=kv_blocks_of(model.config, kv_dtype, hardware.gpus))
    row: Row = {
        "kind": "predicted",
        "name": model.name,
        "path": str(model.path),
        "role": "candidate" if index else "reference",
        "digest": None,
        **hardware_facts(hardware, model.config),
        "weights_bytes": model.weights,
        "overhead_bytes": hardware.gpus * overhead(model.config),
        "kv_cache_dtype": kv_dtype,
        "kv_bytes_per_token": model.kv_bytes_per_token,
        **fit_facts(model, hardware, prompt_tokens, new_tokens, kv_dtype),
    }
    return cast("CapacityRow", row)


def hardware_facts(hardware: Hardware, config: dict[str, Any]) -> Row:
    """The part of a row that describes the hardware."""
    return {
        "hardware": hardware.name,
        "hardware_title": hardware.title,
        "gpus": hardware.gpus,
        "memory_bytes": hardware.memory,
        "usable_bytes": hardware.usable,
        "bandwidth_bytes_per_s": hardware.bandwidth,
        "capability": None if hardware.capability is None else f"{hardware.capability / 10:.1f}",
        "kernel": kernel_of(hardware, config),
        "note": hardware.note,
    }


def fit_facts(
    model: ModelFootprint, hardware: Hardware, prompt_tokens: int, new_tokens: int, kv_dtype: str = AUTO
) -> Row:
    """The part of a row that states whether and how much fits."""
    tokens = prompt_tokens + new_tokens
    request = kv_bytes(model.blocks, tokens)
    room = hardware.usable - model.weights - hardware.gpus * overhead(model.config)
    unsupported = unfit_reason(model, hardware, kv_dtype)
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


def unfit_reason(model: ModelFootprint, hardware: Hardware, kv_dtype: str = AUTO) -> str | None:
    """The reason why vLLM cannot serve the model on this hardware, whatever the sizes, or None if it can.

    Several GPUs share the model by tensor parallelism.
    """
    if reason := unsupported_reason(hardware, model.config):
        return reason
    if reason := unsupported_dtype(kv_dtype, model.config, hardware.capability):
        return reason
    return split_reason(model, hardware.gpus)


def split_reason(model: ModelFootprint, gpus: int, group_size: int | None = None) -> str | None:
    """The reason why `gpus` GPUs cannot share the model by tensor parallelism, or None if they can.

    With `group_size`, the packed modules are as if quantized with it.
    """
    if gpus == 1:
        return None
    schemes = {
        name: scheme if group_size is None else replace(scheme, group_size=group_size)
        for name, scheme in model.schemes.items()
    }
    return split_fault(model.config, make_table(model.config), schemes, gpus)


def estimate(model: ModelFootprint, hardware: Hardware, tokens: int) -> float | None:
    """An upper bound of decoded tokens per second at batch size 1: bandwidth over the bytes that a token reads.

    The bandwidths of several GPUs are added. Transfers between GPUs are not counted.
    """
    if hardware.bandwidth is None:
        return None
    return hardware.gpus * hardware.bandwidth / (model.read + kv_bytes(model.blocks, tokens))
