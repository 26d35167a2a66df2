"""The parameters of known model types as a table, so that sizes need neither torch nor transformers.

A row lists the modules of a decoder block in the order of transformers' code; tests/model/test_architectures.py
compares the two. This table reads a config.json only if `is_familiar` accepts every key in it. transformers decides
about all others.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from compress.model.config_keys import has_familiar_values, is_default_rope, is_llama_rope, is_nested_rope, is_phi_rope

Config = dict[str, Any]
FULL, SLIDING = "full_attention", "sliding_attention"
DEFAULT_WINDOW = 4096  # tokens


def no_lists(config: Config) -> dict[str, list[Any]]:
    return {}


def by_max_window_layers(config: Config) -> dict[str, list[Any]]:
    """qwen2, qwen3: blocks from max_window_layers on slide, if use_sliding_window is set."""
    slides = config.get("use_sliding_window", False) and config.get("sliding_window", DEFAULT_WINDOW) is not None
    first, blocks = config.get("max_window_layers", 28), range(config["num_hidden_layers"])
    return {"layer_types": [SLIDING if slides and block >= first else FULL for block in blocks]}


def all_slide(config: Config) -> dict[str, list[Any]]:
    """ministral: all blocks slide, unless sliding_window is null."""
    kind = FULL if config.get("sliding_window", DEFAULT_WINDOW) is None else SLIDING
    return {"layer_types": [kind] * int(config["num_hidden_layers"])}


def every_second_is_full(config: Config) -> dict[str, list[Any]]:
    """gemma2: blocks slide, except every second one."""
    return {"layer_types": [FULL if (block + 1) % 2 == 0 else SLIDING for block in range(config["num_hidden_layers"])]}


def every_nth_is_full(config: Config) -> dict[str, list[Any]]:
    """gemma3: blocks slide, except every sixth one, or every one of another period in config.json."""
    period, blocks = config.get("sliding_window_pattern", 6), range(config["num_hidden_layers"])
    return {"layer_types": [FULL if (block + 1) % period == 0 else SLIDING for block in blocks]}


def by_interval(config: Config) -> dict[str, list[Any]]:
    """smollm3: every fourth block has no rotary embedding, and slides if use_sliding_window is set."""
    period, blocks = config.get("no_rope_layer_interval", 4), range(config["num_hidden_layers"])
    rope = config.get("no_rope_layers") or [int((block + 1) % period != 0) for block in blocks]
    slides = config.get("use_sliding_window", False) and config.get("sliding_window") is not None
    return {"layer_types": [FULL if rope[block] or not slides else SLIDING for block in blocks], "no_rope_layers": rope}


@dataclass(frozen=True)
class Part:
    """A module of a block: a linear (out, inn), or a norm (out,) if `inn` is "". Sizes are names in `sizes_of`.

    `bias` is True, False, or the key of config.json that decides.
    """

    path: str
    out: str
    inn: str = ""
    bias: bool | str = False


@dataclass(frozen=True)
class ModelParts:
    """A model class: its name, the parts of a block, and what a config.json of this type may leave out.

    `tied` is the default of tie_word_embeddings. With `kv_heads`, the key num_key_value_heads may be missing or null.
    `head_dim` lists how the key head_dim may be left out: missing, null, or both. `rope` checks the rope settings.
    `layer_lists` computes the lists with one entry per block that transformers fills in. `window` is the default of
    sliding_window.
    """

    name: str
    parts: tuple[Part, ...]
    tied: bool = False
    kv_heads: bool = False
    head_dim: tuple[str, ...] = ()
    rope: Callable[[Any], bool] = is_default_rope
    layer_lists: Callable[[Config], dict[str, list[Any]]] = no_lists
    window: int | None = None


def attention(bias: bool | str = False, out_bias: bool | str = False) -> tuple[Part, ...]:
    """The four linears of an attention."""
    return (
        Part("self_attn.q_proj", "query", "hidden", bias),
        Part("self_attn.k_proj", "kv", "hidden", bias),
        Part("self_attn.v_proj", "kv", "hidden", bias),
        Part("self_attn.o_proj", "hidden", "query", out_bias),
    )


def gated_mlp(bias: bool | str = False) -> tuple[Part, ...]:
    """The three linears of a gated MLP."""
    return (
        Part("mlp.gate_proj", "intermediate", "hidden", bias),
        Part("mlp.up_proj", "intermediate", "hidden", bias),
        Part("mlp.down_proj", "hidden", "intermediate", bias),
    )


HEAD_NORMS = (Part("self_attn.q_norm", "head"), Part("self_attn.k_norm", "head"))
NORMS = (Part("input_layernorm", "hidden"), Part("post_attention_layernorm", "hidden"))
GEMMA_NORMS = (*NORMS, Part("pre_feedforward_layernorm", "hidden"), Part("post_feedforward_layernorm", "hidden"))
BIASED = attention("attention_bias", "attention_bias")
MISSING, NULL = "missing", "null"
LLAMA = ModelParts(
    "LlamaForCausalLM",
    (*BIASED, *gated_mlp("mlp_bias"), *NORMS),
    kv_heads=True,
    head_dim=(MISSING, NULL),
    rope=is_llama_rope,
)
QWEN2 = ModelParts(
    "Qwen2ForCausalLM",
    (*attention(bias=True), *gated_mlp(), *NORMS),
    head_dim=(MISSING,),
    layer_lists=by_max_window_layers,
    window=DEFAULT_WINDOW,
)
GEMMA2 = ModelParts(
    "Gemma2ForCausalLM",
    (*BIASED, *gated_mlp(), *GEMMA_NORMS),
    tied=True,
    layer_lists=every_second_is_full,
    window=DEFAULT_WINDOW,
)
PHI3_PARTS = (
    Part("self_attn.o_proj", "hidden", "query"),
    Part("self_attn.qkv_proj", "qkv", "hidden"),
    Part("mlp.gate_up_proj", "gate_up", "hidden"),
    Part("mlp.down_proj", "hidden", "intermediate"),
    *NORMS,
)
MISTRAL = ModelParts(
    "MistralForCausalLM", (*attention(), *gated_mlp(), *NORMS), head_dim=(MISSING, NULL), window=DEFAULT_WINDOW
)
ARCHITECTURES = {
    "llama": LLAMA,
    "granite": replace(LLAMA, name="GraniteForCausalLM", head_dim=(MISSING,), rope=is_default_rope),
    "smollm3": ModelParts("SmolLM3ForCausalLM", LLAMA.parts, tied=True, head_dim=(MISSING,), layer_lists=by_interval),
    "mistral": MISTRAL,
    "ministral": replace(MISTRAL, name="MinistralForCausalLM", head_dim=(), layer_lists=all_slide),
    "qwen2": QWEN2,
    "qwen3": replace(QWEN2, name="Qwen3ForCausalLM", parts=(*BIASED, *HEAD_NORMS, *gated_mlp(), *NORMS), head_dim=()),
    "gemma2": GEMMA2,
    "gemma3_text": replace(
        GEMMA2,
        name="Gemma3ForCausalLM",
        parts=(*BIASED, *HEAD_NORMS, *gated_mlp(), *GEMMA_NORMS),
        layer_lists=every_nth_is_full,
        rope=is_nested_rope,
    ),
    "phi3": ModelParts("Phi3ForCausalLM", PHI3_PARTS, kv_heads=True, head_dim=(MISSING,), rope=is_phi_rope),
}


def find_architecture(config: Config) -> ModelParts | None:
    """The row of a config.json that this table reads as transformers does. None for any other config.json."""
    kind = config.get("model_type")
    row = ARCHITECTURES.get(kind) if isinstance(kind, str) else None
    return row if row is not None and is_familiar(config, row) else None


def is_familiar(config: Config, row: ModelParts) -> bool:
    """Whether transformers certainly accepts a config.json, and builds the row's parts from it."""
    if config.get("architectures") != [row.name] or not has_familiar_values(config):
        return False
    if not all(row.rope(config[key]) for key in ("rope_parameters", "rope_scaling") if config.get(key)):
        return False
    heads, kv_heads, head_dim = config["num_attention_heads"], config.get("num_key_value_heads"), config.get("head_dim")
    form = MISSING if "head_dim" not in config else NULL
    if (kv_heads is None and not row.kv_heads) or (head_dim is None and form not in row.head_dim):
        return False
    whole = config["hidden_size"] % heads == 0 and heads % (kv_heads or heads) == 0
    return bool(whole) and (head_dim or config["hidden_size"] // heads) % 2 == 0


def sizes_of(config: Config) -> dict[str, int]:
    """The sizes of a familiar config.json: those that parts name, and heads, kv_heads, blocks and vocabulary."""
    hidden, heads, intermediate = (
        int(config[key]) for key in ("hidden_size", "num_attention_heads", "intermediate_size")
    )
    kv_heads, head = config.get("num_key_value_heads") or heads, config.get("head_dim") or hidden // heads
    query, kv = heads * head, kv_heads * head
    return {
        **{"hidden": hidden, "intermediate": intermediate, "heads": heads, "kv_heads": kv_heads, "head": head},
        **{"query": query, "kv": kv, "qkv": query + 2 * kv, "gate_up": 2 * intermediate},
        **{"blocks": config["num_hidden_layers"], "vocabulary": config["vocab_size"]},
    }


def layer_lists(config: Config, row: ModelParts) -> dict[str, list[Any]]:
    """The lists of a familiar config.json with one entry per block: its own, or those that transformers fills in."""
    stored = {name: config[name] for name in ("layer_types", "no_rope_layers") if config.get(name)}
    return row.layer_lists(config) | stored
