"""The architectures that can be imported: which keys each uses, and the config.json they become.

A new architecture is one row of ARCHITECTURES. What its converter writes:
https://github.com/ggml-org/llama.cpp/tree/master/conversion.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from compress.checkpoint.gguf.keys import (
    BASE,
    REQUIRED,
    RMS,
    Key,
    check_only,
    count,
    elsewhere,
    epsilon,
    harmless,
    number,
    only,
    optional_count,
    optional_number,
    read_value,
    shown,
)
from compress.checkpoint.gguf.rope import rope_parameters
from compress.checkpoint.gguf.shards import GgufModel

Config = dict[str, Any]
MAX_BLOCKS = 512  # llama.cpp's limit
OTHER_PROGRAMS = ("adapter", "clip", "diffusion", "xielu")  # namespaces of llama.cpp that change a model


@dataclass(frozen=True)
class Architecture:
    """One value of general.architecture: the model type of transformers, its keys, and how values were converted.

    `head_dim`: config.json has this key; otherwise heads have hidden_size / num_attention_heads channels.
    `partial`: only some channels of a head may be rotated. `interleaved`: rows of queries and keys are reordered.
    `offset`: what the file adds to the weights of norms. `switches`: keys of config.json that are true if the file has
    a tensor. `finish` adds to config.json what is not a copy of one key.
    """

    model_type: str
    keys: dict[str, Key]
    head_dim: bool = False
    partial: bool = False
    interleaved: bool = False
    offset: float = 0.0
    switches: dict[str, str] = field(default_factory=dict)
    finish: Callable[[GgufModel, Config], Config] | None = None


def gemma_scaling(model: GgufModel, config: Config, large: int) -> Config:
    """Gemma scales queries by head_dim; its largest size, by hidden_size / heads. The file does not store which."""
    usual = config["head_dim"]
    per_head = config["hidden_size"] // config["num_attention_heads"]
    return {"query_pre_attn_scalar": per_head if config["num_hidden_layers"] == large else usual}


def finish_gemma2(model: GgufModel, config: Config) -> Config:
    return gemma_scaling(model, config, large=46)


def finish_gemma3(model: GgufModel, config: Config) -> Config:
    """Sliding and full attention have their own rotary bases. Five sliding blocks come before each full one."""
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
    """A window of 0 is full attention. The context before scaling stands at the top level too."""
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
        raise model.fail(f"{name} is {shown(heads)}, not one number per block, 0 for convolutions")
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


def find_architecture(model: GgufModel) -> tuple[str, Architecture]:
    """(name, row) of the model. QCompressError for an adapter, another kind of file, or an unknown architecture."""
    kind = model.metadata.get("general.type", "model")
    if kind != "model":
        raise model.fail(f"general.type is {kind!r}, not model", "import the model itself")
    name = model.metadata.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise model.fail(f"the architecture {shown(name)} cannot be imported", f"give a file of one of {known}")
    return name, ARCHITECTURES[name]


def read_config(model: GgufModel) -> Config:
    """The keys of config.json that the file describes. QCompressError for a key that is unknown or has a bad value."""
    prefix, architecture = find_architecture(model)
    config: Config = {"model_type": architecture.model_type}
    for name in REQUIRED:
        if f"{prefix}.{name}" not in model.metadata:
            raise model.fail(f"lacks the metadata key {prefix}.{name}")
    check_namespaces(model, prefix)
    for name, key in own_keys(model, prefix, architecture).items():
        if key.kind == "only":
            check_only(model, name, key)
        elif key.config is not None:
            config[key.config] = read_value(model, name, key)
    check_norm(model, prefix, architecture)
    if config["num_hidden_layers"] > MAX_BLOCKS:
        raise model.fail(f"{prefix}.block_count is {config['num_hidden_layers']:,}, more than {MAX_BLOCKS}")
    config.setdefault("num_key_value_heads", config["num_attention_heads"])
    config |= vocabulary(model, config)
    size = head_size(model, prefix, architecture, config)
    config |= {"head_dim": size} if architecture.head_dim else {}
    config |= rotary(model, prefix, architecture, size)
    config |= {key: tensor in model.tensors for key, tensor in architecture.switches.items()}
    config["tie_word_embeddings"] = "output.weight" not in model.tensors
    return config | (architecture.finish(model, config) if architecture.finish else {})


def check_namespaces(model: GgufModel, prefix: str) -> None:
    """QCompressError for a key of another architecture. Notes of other programs, such as quantize.*, are harmless."""
    from gguf.constants import MODEL_ARCH_NAMES

    for name in model.metadata:
        space = name.partition(".")[0]
        if space != prefix and (space in OTHER_PROGRAMS or space in MODEL_ARCH_NAMES.values()):
            raise model.fail(f"has the metadata key {name}, its architecture is {prefix}", "import another model")


def own_keys(model: GgufModel, prefix: str, architecture: Architecture) -> dict[str, Key]:
    """The row of each metadata key of this architecture. QCompressError for a key without a row."""
    names = [name for name in model.metadata if name.startswith(f"{prefix}.")]
    for name in names:
        if name.removeprefix(f"{prefix}.") not in architecture.keys:
            value = shown(model.metadata[name])
            raise model.fail(f"{name} is {value}: this key is unknown and may change the model", "import another model")
    return {name: architecture.keys[name.removeprefix(f"{prefix}.")] for name in names}


def check_norm(model: GgufModel, prefix: str, architecture: Architecture) -> None:
    """QCompressError without the constant that norms add to a variance."""
    name = next(f"{prefix}.{name}" for name, key in architecture.keys.items() if key.kind == "epsilon")
    if name not in model.metadata:
        raise model.fail(f"lacks the metadata key {name}")


def vocabulary(model: GgufModel, config: Config) -> Config:
    """The number of rows of the embedding. QCompressError if the metadata gives another one."""
    embedding = model.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise model.fail("lacks the tensor token_embd.weight with two dimensions")
    rows = embedding.shape[0]
    if config.get("vocab_size", rows) != rows:
        raise model.fail(f"token_embd.weight has {rows:,} rows, vocab_size is {config['vocab_size']:,}")
    return {"vocab_size": rows}


def head_size(model: GgufModel, prefix: str, architecture: Architecture, config: Config) -> int:
    """The channels of a head. QCompressError if config.json cannot express the key's value."""
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    stated = optional_count(model, f"{prefix}.attention.key_length")
    if stated is None and architecture.head_dim and not architecture.partial:
        stated = optional_count(model, f"{prefix}.rope.dimension_count")
    size = stated or hidden // heads
    if not architecture.head_dim and (size != hidden // heads or hidden % heads):
        raise model.fail(f"{heads} heads of {size} channels do not make {prefix}.embedding_length {hidden}")
    value = optional_count(model, f"{prefix}.attention.value_length") or size
    if value != size:
        raise model.fail(f"{prefix}.attention.value_length is {value}, keys have {size}", "import another model")
    if heads % one_kv(model, prefix, config):
        raise model.fail(f"{heads} heads are not a multiple of {prefix}.attention.head_count_kv")
    return size


def one_kv(model: GgufModel, prefix: str, config: Config) -> int:
    """The key-value heads, of the attention blocks where only some blocks attend."""
    heads = model.metadata.get(f"{prefix}.attention.head_count_kv")
    return max(1, int(max(heads))) if isinstance(heads, np.ndarray) and len(heads) else config["num_key_value_heads"]


def rotary(model: GgufModel, prefix: str, architecture: Architecture, size: int) -> Config:
    """`rope_parameters`, with the rotated share of a head. QCompressError if the architecture rotates all channels."""
    channels = optional_count(model, f"{prefix}.rope.dimension_count") or size
    if channels % 2 or channels > size or (channels != size and not architecture.partial):
        raise model.fail(f"{prefix}.rope.dimension_count is {channels}, heads have {size} channels")
    parameters = rope_parameters(model, prefix, channels)
    return {
        "rope_parameters": parameters | ({"partial_rotary_factor": channels / size} if architecture.partial else {})
    }
