"""Values of config.json that transformers cannot use: wrong types, sizes below 1, NaN, token ids beyond the vocabulary.

A rule is one row of RULES. Null is allowed everywhere and means the default of the model type. `text_config` follows
the same rules.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeGuard

from compress.checkpoint.door.fault import Fault, Faults
from compress.checkpoint.door.files import CONFIG, json_kind
from compress.core.dtypes import Dtype

BLOCK_KEYS = ("num_hidden_layers", "n_layer", "num_layers")
WIDTH_KEYS = ("hidden_size", "n_embd", "d_model")
TOKEN_KEYS = ("bos_token_id", "eos_token_id", "pad_token_id")
CURE = "correct it, or fetch the file again"
DTYPE_KEYS = ("dtype", "torch_dtype")
ACTIVATION_KEYS = ("hidden_act", "hidden_activation", "activation_function")


@dataclass(frozen=True)
class ValueRule:
    """Keys of config.json, a test of their value, and what the value must be."""

    keys: tuple[str, ...]
    is_valid: Callable[[Any], bool]
    expected: str


def is_whole(value: Any) -> TypeGuard[int]:
    """Whether a value is a whole number. A boolean is not."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_size(value: Any) -> TypeGuard[int]:
    """Whether a value is a whole number of 1 or more."""
    return is_whole(value) and value >= 1


def is_number(value: Any) -> bool:
    """Whether a value is a finite number. A boolean is not."""
    return is_whole(value) or (isinstance(value, float) and math.isfinite(value))


def is_size_or_sizes(value: Any) -> bool:
    return is_size(value) or (isinstance(value, list) and bool(value) and all(map(is_size, value)))


def is_token(value: Any) -> bool:
    """Whether a value is a token id or a list of ids. A few published configs have -1 for "unset"."""
    return is_whole(value) or (isinstance(value, list) and all(map(is_whole, value)))


def is_dtype(value: Any) -> bool:
    """Whether transformers can turn the name into a torch dtype."""
    if not isinstance(value, str) or value in set(Dtype):
        return isinstance(value, str)
    import torch  # it has further names, such as "half"

    return isinstance(getattr(torch, value, None), torch.dtype)


def is_strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


RULES = (
    ValueRule(
        (
            *BLOCK_KEYS,
            *WIDTH_KEYS,
            *("vocab_size", "num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings"),
            *(
                "n_head",
                "n_positions",
                "n_inner",
                "ffn_dim",
                "moe_intermediate_size",
                "original_max_position_embeddings",
            ),
        ),
        is_size,
        "a whole number of 1 or more",
    ),
    ValueRule(("intermediate_size",), is_size_or_sizes, "a whole number of 1 or more"),
    ValueRule(("sliding_window", "max_window_layers"), is_whole, "a whole number"),
    ValueRule(
        ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "norm_epsilon", "initializer_range"),
        lambda value: is_number(value) and value >= 0,
        "a finite number of 0 or more",
    ),
    ValueRule(
        ("rope_theta", "rope_local_base_freq", "query_pre_attn_scalar", "logits_scaling"),
        lambda value: is_number(value) and value > 0,
        "a finite number above 0",
    ),
    ValueRule(
        (
            *("attn_logit_softcapping", "final_logit_softcapping", "attention_multiplier", "embedding_multiplier"),
            *("residual_multiplier", "logit_scale", "partial_rotary_factor"),
        ),
        is_number,
        "a finite number",
    ),
    ValueRule(
        ("attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop"),
        lambda value: is_number(value) and 0 <= value <= 1,
        "a number from 0 to 1",
    ),
    ValueRule(
        ("tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window", "is_encoder_decoder"),
        lambda value: isinstance(value, bool),
        "true or false",
    ),
    ValueRule(TOKEN_KEYS, is_token, "a token id or a list of ids"),
    ValueRule(("model_type", *ACTIVATION_KEYS), lambda value: isinstance(value, str), "a string"),
    ValueRule(("architectures", "layer_types"), is_strings, "a list of strings"),
    ValueRule(DTYPE_KEYS, is_dtype, 'a dtype such as "bfloat16"'),
    ValueRule(
        ("quantization_config", "text_config", "auto_map"),
        lambda value: isinstance(value, dict),
        "an object, or absent",
    ),
)


def config_faults(config: dict[str, Any], prefix: str = "") -> Faults:
    """The values of a config.json that break a rule, or that contradict each other."""
    for rule in RULES:
        for key in rule.keys:
            value = config.get(key)
            if value is not None and not rule.is_valid(value):
                yield value_fault(f"{prefix}{key}", value, rule.expected)
    if config.get("quantization_config") is False:
        yield value_fault(f"{prefix}quantization_config", False, "an object, or absent")
    for path in nan_paths(config, prefix.rstrip(".")):
        yield Fault(CONFIG, path, "NaN", CURE)
    yield from contradicting_dtypes(config, prefix)
    yield from tokens_beyond(config, prefix)
    text = config.get("text_config")
    if isinstance(text, dict):
        yield from config_faults(text, f"{prefix}text_config.")


def value_fault(key: str, value: Any, expected: str) -> Fault:
    """The fault of one value. A plain value is quoted; for a list or an object, only its type is named."""
    shown = "" if isinstance(value, list | dict) else f" {value!r:.60}"
    return Fault(CONFIG, key, f"{json_kind(value)}{shown}, expected {expected}", "correct it, or fetch the file again")


def nan_paths(value: Any, path: str) -> Iterator[str]:
    """The paths of all NaN numbers in a JSON value."""
    if isinstance(value, float) and math.isnan(value):
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from nan_paths(item, f"{path}.{key}" if path else str(key))


def contradicting_dtypes(config: dict[str, Any], prefix: str) -> Faults:
    """dtype and its old spelling torch_dtype must agree: some loaders read one, some the other."""
    new, old = (config.get(key) for key in DTYPE_KEYS)
    if new is not None and old is not None and new != old:
        yield Fault(CONFIG, f"{prefix}dtype", f"{new!r}, but torch_dtype is {old!r}", "keep one of the two keys")


def tokens_beyond(config: dict[str, Any], prefix: str = "") -> Faults:
    """pad_token_id must have a row in the embedding; torch refuses to build the model otherwise."""
    vocabulary, pad = config.get("vocab_size"), config.get("pad_token_id")
    if is_size(vocabulary) and is_whole(pad) and not -vocabulary <= pad < vocabulary:
        yield Fault(
            CONFIG, f"{prefix}pad_token_id", f"{pad}, but vocab_size is {vocabulary}", "correct it, or set it to null"
        )
