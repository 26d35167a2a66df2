"""The keys and values of a config.json that transformers certainly accepts, so that it need not be asked.

The list covers published checkpoints of the known families. A config.json with anything else goes to transformers,
which is slower. Types are as strict as those of transformers.
"""

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

Test = Callable[[Any], bool]
REQUIRED = ("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
MOST_BLOCKS = 1000  # published models have at most 130
ACTIVATIONS = ("silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu")
KINDS = ("full_attention", "sliding_attention")
DTYPES = ("float16", "bfloat16", "float32")
LLAMA3_NUMBERS, EXTENT = ("factor", "low_freq_factor", "high_freq_factor"), "original_max_position_embeddings"


def is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_size(value: Any) -> bool:
    return is_whole(value) and value >= 1


def is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def is_real(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def is_number(value: Any) -> bool:
    return is_real(value) or is_whole(value)


def is_positive(value: Any) -> bool:
    return is_number(value) and value > 0


def is_positive_real(value: Any) -> bool:
    return is_real(value) and value > 0


def is_share(value: Any) -> bool:
    return is_number(value) and 0 <= value < 1


def is_text(value: Any) -> bool:
    return isinstance(value, str)


def is_object(value: Any) -> bool:
    return isinstance(value, dict)


def or_null(test: Test) -> Test:
    return lambda value: value is None or test(value)


def is_token(value: Any) -> bool:
    return is_whole(value) and value >= 0


def is_default_rope(value: Any) -> bool:
    """Whether rope settings have the type default."""
    plain = (
        isinstance(value, dict) and value.get("rope_type") == "default" and value.keys() <= {"rope_type", "rope_theta"}
    )
    return plain and is_positive(value.get("rope_theta", 1))


def is_phi_rope(value: Any) -> bool:
    """Whether rope settings have the type default, and turn whole heads."""
    if not isinstance(value, dict) or value.get("partial_rotary_factor", 1.0) != 1.0:
        return False
    return is_default_rope({key: entry for key, entry in value.items() if key != "partial_rotary_factor"})


def is_llama_rope(value: Any) -> bool:
    """Whether rope settings have the type default, or are complete ones of the type llama3."""
    if not isinstance(value, dict) or value.get("rope_type") != "llama3":
        return is_default_rope(value)
    numbers = [value.get(key) for key in LLAMA3_NUMBERS]
    complete = value.keys() | {"rope_theta"} == {"rope_type", "rope_theta", EXTENT, *LLAMA3_NUMBERS}
    return complete and is_size(value[EXTENT]) and all(map(is_positive, (*numbers, value.get("rope_theta", 1))))


def is_nested_rope(value: Any) -> bool:
    """Whether rope settings have the type default for each kind of attention."""
    return isinstance(value, dict) and value.keys() == {*KINDS} and all(map(is_default_rope, value.values()))


def is_labels(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


def anything(value: Any) -> bool:
    return True


KEYS: dict[str, Test] = {
    **dict.fromkeys(REQUIRED[1:], is_size),
    "num_hidden_layers": lambda value: is_size(value) and value <= MOST_BLOCKS,
    "max_position_embeddings": is_size,
    "num_key_value_heads": or_null(is_size),
    "head_dim": or_null(is_size),
    "model_type": is_text,
    "architectures": lambda value: isinstance(value, list) and all(map(is_text, value)),
    **dict.fromkeys(("hidden_act", "hidden_activation"), lambda value: value in ACTIVATIONS),
    **dict.fromkeys(("dtype", "torch_dtype"), lambda value: value in DTYPES),
    "rms_norm_eps": lambda value: is_real(value) and value >= 0,
    "initializer_range": lambda value: is_real(value) and 0 <= value <= 1,
    **dict.fromkeys(("attention_dropout", "resid_pdrop", "embd_pdrop"), is_share),
    **dict.fromkeys(("attention_bias", "mlp_bias", "tie_word_embeddings", "use_cache", "use_sliding_window"), is_flag),
    **dict.fromkeys(("pad_token_id", "bos_token_id"), or_null(is_token)),
    "eos_token_id": or_null(lambda value: is_token(value) or (isinstance(value, list) and all(map(is_token, value)))),
    "unk_token_id": or_null(is_token),
    "rope_theta": is_positive,
    "rope_local_base_freq": is_positive,
    **dict.fromkeys(("rope_scaling", "rope_parameters"), or_null(is_object)),  # `ModelParts.rope` tests them
    EXTENT: is_size,
    "no_rope_layer_interval": is_size,
    "no_rope_layers": or_null(lambda value: isinstance(value, list) and all(entry in (0, 1) for entry in value)),
    "sliding_window": or_null(is_size),
    "max_window_layers": is_whole,
    **dict.fromkeys(("sliding_window_pattern", "_sliding_window_pattern"), is_size),
    "use_bidirectional_attention": lambda value: value in (None, False),
    "layer_types": lambda value: isinstance(value, list) and all(kind in KINDS for kind in value),
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping"), or_null(is_positive_real)),
    "query_pre_attn_scalar": is_size,
    **dict.fromkeys(
        ("embedding_multiplier", "logits_scaling", "residual_multiplier", "attention_multiplier"), is_positive
    ),
    "pretraining_tp": lambda value: value == 1,
    **dict.fromkeys(("quantization_config", "auto_map"), or_null(is_object)),
    **dict.fromkeys(("output_hidden_states", "output_attentions", "is_encoder_decoder"), lambda value: value is False),
    "return_dict": lambda value: value is True,
    "chunk_size_feed_forward": lambda value: value == 0,
    "problem_type": lambda value: value is None,
    "id2label": lambda value: is_labels(value) and all(key.isascii() and key.isdecimal() for key in value),
    "label2id": lambda value: is_labels(value) and all(map(is_whole, value.values())),
    **dict.fromkeys(("transformers_version", "_name_or_path", "_model_name_or_path"), is_text),
    **dict.fromkeys(("is_llama_config", "rope_interleaved", "transformers.js_config"), anything),
}


def has_familiar_values(config: Mapping[str, Any]) -> bool:
    """Whether a config.json has all sizes, no key outside of KEYS, and only values that transformers accepts."""
    if not all(key in config for key in REQUIRED):
        return False
    if not all(key in KEYS and KEYS[key](value) for key, value in config.items()):
        return False
    blocks = config["num_hidden_layers"]
    kinds = config.get("layer_types", ["full_attention"] * blocks)
    if len(kinds) != blocks or ("sliding_attention" in kinds and config.get("sliding_window") is None):
        return False
    if len(config.get("no_rope_layers") or range(blocks)) != blocks:
        return False
    pad = config.get("pad_token_id")
    return pad is None or pad < config["vocab_size"]


def plain_config(config: dict[str, Any]) -> dict[str, Any]:
    """A deep copy of a config.json without its settings of quantization."""
    return copy.deepcopy({key: value for key, value in config.items() if key != "quantization_config"})
