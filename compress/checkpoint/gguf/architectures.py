"""The architectures that can be imported: which keys each uses, and the config.json they become.

A new architecture is one row of ARCHITECTURES. llama.cpp's converters show which keys and tensors its files have:
https://github.com/ggml-org/llama.cpp/tree/master/conversion.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from compress.checkpoint.gguf.keys import (
    BASE,
    RMS,
    Key,
    count,
    elsewhere,
    epsilon,
    harmless,
    number,
    only,
    optional_count,
    optional_number,
    shown,
)
from compress.checkpoint.gguf.qwen35 import QWEN35, finish_qwen35, qwen35_layout
from compress.checkpoint.gguf.shards import GgufModel

Config = dict[str, Any]


@dataclass(frozen=True)
class Architecture:
    """An architecture: its model type in transformers, its metadata keys, and how llama.cpp converts its tensors.

    With `head_dim`, config.json has that key; otherwise a head has hidden_size / num_attention_heads channels. With
    `partial`, positions may rotate only some channels of a head. With `interleaved`, the file reorders the rows of
    queries and keys. `offset` is the number that the file adds to the weights of norms. `switches` maps keys of
    config.json to tensors: a key is true if the file has its tensor. `finish` returns the keys of config.json that are
    not copies of a metadata key. `layout` returns further fields of a `Parameter`.
    """

    model_type: str
    keys: dict[str, Key]
    head_dim: bool = False
    partial: bool = False
    interleaved: bool = False
    offset: float = 0.0
    switches: dict[str, str] = field(default_factory=dict)
    finish: Callable[[GgufModel, Config], Config] | None = None
    layout: Callable[[str, Config], dict[str, Any]] | None = None


def gemma_scaling(model: GgufModel, config: Config, large: int) -> Config:
    """The `query_pre_attn_scalar` of a Gemma model: hidden_size / heads for a model of `large` blocks, else head_dim.

    The file does not store it.
    """
    usual = config["head_dim"]
    per_head = config["hidden_size"] // config["num_attention_heads"]
    return {"query_pre_attn_scalar": per_head if config["num_hidden_layers"] == large else usual}


def finish_gemma2(model: GgufModel, config: Config) -> Config:
    return gemma_scaling(model, config, large=46)


def finish_gemma3(model: GgufModel, config: Config) -> Config:
    """Gemma 3: sliding and full attention have different rotary bases. By default, every sixth block is full."""
    sliding_theta = optional_number(model, "gemma3.rope.freq_base_swa", 10_000.0)
    parts = {
        "full_attention": config["rope_parameters"],
        "sliding_attention": {"rope_theta": sliding_theta, "rope_type": "default"},
    }
    window = "gemma3.attention.sliding_window" in model.metadata
    pattern = model.metadata.get("gemma3.attention.sliding_window_pattern", 6)
    blocks = config["num_hidden_layers"]
    if isinstance(pattern, np.ndarray):
        sliding = [bool(one) for one in pattern]
    elif isinstance(pattern, int) and pattern >= 1:
        sliding = [(block + 1) % pattern != 0 for block in range(blocks)]
    else:
        sliding = []
    if len(sliding) != blocks:
        raise model.fail(f"gemma3.attention.sliding_window_pattern is {shown(pattern)}, not one value per block")
    types = ["sliding_attention" if window and one else "full_attention" for one in sliding]
    return gemma_scaling(model, config, large=62) | {"layer_types": types, "rope_parameters": parts}


def finish_granite(model: GgufModel, config: Config) -> Config:
    """Without attention.scale, llama.cpp divides by the root of the head size; transformers multiplies by 1."""
    if model.metadata.get("granite.rope.scaling.finetuned") is False:
        raise model.fail("granite.rope.scaling.finetuned is False: rotary positions are off", "import another model")
    size = config["hidden_size"] // config["num_attention_heads"]
    return {"attention_multiplier": optional_number(model, "granite.attention.scale", 1 / math.sqrt(size))}


def finish_phi3(model: GgufModel, config: Config) -> Config:
    """Phi 3: a window of 0 means full attention. config.json has the context length before scaling at its top level."""
    window = model.metadata.get("phi3.attention.sliding_window", 0)
    sliding = None if window == 0 else optional_count(model, "phi3.attention.sliding_window")
    original = optional_count(model, "phi3.rope.scaling.original_context_length")
    original = original or config["max_position_embeddings"]
    return {"sliding_window": sliding, "original_max_position_embeddings": original}


def finish_stablelm(model: GgufModel, config: Config) -> Config:
    """Blocks without a second norm run attention and MLP in parallel."""
    return {"use_parallel_residual": "blk.0.ffn_norm.weight" not in model.tensors}


def finish_lfm2(model: GgufModel, config: Config) -> Config:
    """Blocks with 0 key-value heads are convolutions."""
    name = "lfm2.attention.head_count_kv"
    heads = model.metadata.get(name)
    if not isinstance(heads, np.ndarray) or len(heads) != config["num_hidden_layers"] or len(set(heads) - {0}) != 1:
        raise model.fail(f"{name} is {shown(heads)}, not a list with one number per block (0 for a convolution)")
    types = ["full_attention" if one else "conv" for one in heads]
    return {
        "num_key_value_heads": int(max(heads)),
        "layer_types": types,
        "block_auto_adjust_ff_dim": False,
    }


LLAMA = BASE | RMS
BIAS = {"attention_bias": "blk.0.attn_q.bias"}
MLP_BIAS = {"mlp_bias": "blk.0.ffn_gate.bias"}
LAYER_NORM = {"attention.layer_norm_rms_epsilon": harmless("all norms are layer norms")}
SOFTCAPS = {
    "attn_logit_softcapping": number("attn_logit_softcapping"),
    "final_logit_softcapping": number("final_logit_softcapping"),
}
WINDOW = {"attention.sliding_window": count("sliding_window")}
GEMMA3 = {
    "final_logit_softcapping": number("final_logit_softcapping"),
    "rope.freq_base_swa": elsewhere("`rope_theta` of sliding attention; 10,000 if it is missing"),
    "attention.sliding_window_pattern": elsewhere("`layer_types`; every sixth block is full if it is missing"),
}
GRANITE = {
    "attention.scale": elsewhere("`attention_multiplier`"),
    "embedding_scale": number("embedding_multiplier"),
    "residual_scale": number("residual_multiplier"),
    "logit_scale": number("logits_scaling"),
    "rope.scaling.finetuned": only(True, meaning="rotary positions are off"),
}
STABLELM = {"use_parallel_residual": harmless("the tensors of the file show it")}
LFM2 = {
    "attention.head_count_kv": elsewhere("`num_key_value_heads` and `layer_types`"),
    "attention.layer_norm_rms_epsilon": epsilon("norm_eps"),
    "attention.layer_norm_epsilon": harmless("all norms are RMS norms"),
    "shortconv.l_cache": count("conv_L_cache"),
}

ARCHITECTURES = {
    "llama": Architecture("llama", LLAMA, head_dim=True, interleaved=True, switches=BIAS | MLP_BIAS),
    "qwen2": Architecture("qwen2", LLAMA),
    "qwen3": Architecture("qwen3", LLAMA, head_dim=True, switches=BIAS),
    "qwen35": Architecture(
        "qwen3_5_text",
        LLAMA | QWEN35,
        head_dim=True,
        partial=True,
        offset=1.0,
        finish=finish_qwen35,
        layout=qwen35_layout,
    ),
    "gemma": Architecture("gemma", LLAMA, head_dim=True, offset=1.0),
    "gemma2": Architecture("gemma2", LLAMA | SOFTCAPS | WINDOW, head_dim=True, offset=1.0, finish=finish_gemma2),
    "gemma3": Architecture("gemma3_text", LLAMA | WINDOW | GEMMA3, head_dim=True, offset=1.0, finish=finish_gemma3),
    "phi3": Architecture(
        "phi3",
        LLAMA | {"attention.sliding_window": elsewhere("`sliding_window`; 0 is full attention")},
        partial=True,
        finish=finish_phi3,
    ),
    "granite": Architecture(
        "granite", LLAMA | GRANITE, interleaved=True, switches=BIAS | MLP_BIAS, finish=finish_granite
    ),
    "smollm3": Architecture("smollm3", LLAMA, interleaved=True, switches=BIAS | MLP_BIAS),
    "olmo2": Architecture("olmo2", LLAMA, switches=BIAS),
    "lfm2": Architecture("lfm2", BASE | LFM2, switches={"conv_bias": "blk.0.shortconv.conv.bias"}, finish=finish_lfm2),
    "starcoder2": Architecture(
        "starcoder2",
        BASE | LAYER_NORM | {"attention.layer_norm_epsilon": epsilon("norm_epsilon")},
        switches={"use_bias": "blk.0.attn_q.bias"},
    ),
    "stablelm": Architecture(
        "stablelm",
        BASE | LAYER_NORM | STABLELM | {"attention.layer_norm_epsilon": epsilon("layer_norm_eps")},
        partial=True,
        switches={"use_qkv_bias": "blk.0.attn_q.bias"},
        finish=finish_stablelm,
    ),
    "nemotron": Architecture(
        "nemotron",
        BASE | LAYER_NORM | {"attention.layer_norm_epsilon": epsilon("norm_eps")},
        head_dim=True,
        partial=True,
        offset=1.0,
        switches=BIAS | {"mlp_bias": "blk.0.ffn_up.bias"},
    ),
}
