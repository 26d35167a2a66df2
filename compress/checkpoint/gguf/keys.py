"""Tables that state for each metadata key of a .gguf file whether it is used, harmless or refused.

A key that is not in these tables is refused by its name, since it may change the model. `architectures.py` combines the
tables. llama.cpp reads the keys in https://github.com/ggml-org/llama.cpp/blob/master/src/llama-model.cpp.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from compress.checkpoint.gguf.shards import GgufModel

MAX_COUNT = 2**31 - 1


@dataclass(frozen=True)
class Key:
    """How a metadata key is read. `config` is the key of config.json that gets the value, or None.

    kind "count":     a whole number of at least 1; if it is a list with one number per block, all must be equal
    kind "epsilon":   a number above 0 and below 1
    kind "number":    a finite number above 0
    kind "elsewhere": other code reads the value, for the key of config.json or the purpose in `meaning`
    kind "only":      the file is refused unless the value is in `values`, since config.json cannot express others
    kind "harmless":  the value is not needed, for the reason in `meaning`
    """

    kind: str
    config: str | None = None
    meaning: str = ""
    values: tuple[Any, ...] = ()


def count(config: str) -> Key:
    return Key("count", config)


def epsilon(config: str) -> Key:
    return Key("epsilon", config)


def number(config: str) -> Key:
    return Key("number", config)


def elsewhere(meaning: str) -> Key:
    return Key("elsewhere", meaning=meaning)


def only(*values: Any, meaning: str) -> Key:
    return Key("only", meaning=meaning, values=values)


def harmless(meaning: str) -> Key:
    return Key("harmless", meaning=meaning)


SIZES = {
    "context_length": count("max_position_embeddings"),
    "embedding_length": count("hidden_size"),
    "block_count": count("num_hidden_layers"),
    "feed_forward_length": count("intermediate_size"),
    "attention.head_count": count("num_attention_heads"),
    "attention.head_count_kv": count("num_key_value_heads"),
    "attention.key_length": elsewhere("`head_dim`"),
    "attention.value_length": elsewhere("must equal `head_dim`"),
    "vocab_size": count("vocab_size"),
}
REQUIRED = ("context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count")
ROPE = {
    "rope.dimension_count": elsewhere("must equal `head_dim`, or sets `partial_rotary_factor`"),
    "rope.freq_base": elsewhere("`rope_theta`; 10,000 if it is missing"),
    "rope.scale_linear": elsewhere("`factor` of linear scaling, an older spelling"),
    "rope.scaling.type": elsewhere("`rope_type`: none, linear, yarn or longrope"),
    "rope.scaling.factor": elsewhere("`factor`"),
    "rope.scaling.original_context_length": elsewhere("`original_max_position_embeddings`"),
    "rope.scaling.attn_factor": elsewhere("`attention_factor`"),
    "rope.scaling.yarn_attn_factor": elsewhere("`attention_factor`"),
    "rope.scaling.yarn_beta_fast": elsewhere("`beta_fast`"),
    "rope.scaling.yarn_beta_slow": elsewhere("`beta_slow`"),
    "rope.scaling.yarn_ext_factor": only(1.0, -1.0, meaning="other extrapolation factors of YaRN"),
    "rope.scaling.yarn_log_multiplier": only(0.0, meaning="another magnitude correction of YaRN"),
    "rope.scaling.finetuned": harmless("a note about training"),
}
LIMITS = {
    "expert_count": only(0, meaning="mixtures of experts are not supported"),
    "expert_used_count": only(0, meaning="mixtures of experts are not supported"),
    "attention.causal": only(True, meaning="attention to later tokens is not supported"),
    "attention.sliding_window": only(0, meaning="this architecture attends to all tokens in llama.cpp too"),
    "attention.scale": only(meaning="this architecture scales attention by its head size"),
    "attention.clamp_kqv": only(0.0, meaning="clamped attention is not supported"),
    "attention.max_alibi_bias": only(0.0, meaning="ALiBi is not supported"),
    "attn_logit_softcapping": only(0.0, meaning="this architecture has no softcapping"),
    "final_logit_softcapping": only(0.0, meaning="this architecture has no softcapping"),
    "logit_scale": only(1.0, 0.0, meaning="this architecture does not scale logits"),
    "embedding_scale": only(1.0, 0.0, meaning="this architecture does not scale embeddings"),
    "residual_scale": only(1.0, 0.0, meaning="this architecture does not scale residuals"),
    "use_parallel_residual": only(False, meaning="this architecture has no parallel residual"),
    "nextn_predict_layers": only(0, meaning="multi-token prediction is not supported"),
    "pooling_type": only(0, meaning="embedding models are not supported"),
    "tensor_data_layout": only("Meta AI original pth", meaning="other layouts are not known"),
}
RMS = {
    "attention.layer_norm_rms_epsilon": epsilon("rms_norm_eps"),
    "attention.layer_norm_epsilon": harmless("all norms are RMS norms"),
}
BASE = SIZES | ROPE | LIMITS


def read_value(model: GgufModel, name: str, key: Key) -> Any:
    """The value of a used key as int or float. Raises QCompressError if it is outside the range of the key's kind."""
    value = one_value(model, name)
    if key.kind == "count":
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_COUNT:
            raise model.fail(f"{name} is {shown(value)}, not a whole number of at least 1")
        return value
    limit = 1.0 if key.kind == "epsilon" else math.inf
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < limit:
        raise model.fail(f"{name} is {shown(value)}, not a number above 0" + (" and below 1" if limit == 1 else ""))
    return float(value)


def one_value(model: GgufModel, name: str) -> Any:
    """A metadata value. For a list with one number per block, which must all be equal, that number."""
    value = model.metadata[name]
    if not isinstance(value, np.ndarray):
        return value
    if len(value) == 0 or not (value == value[0]).all():
        raise model.fail(f"{name} differs between blocks ({shown(value)})", "import another model")
    return value[0].item()


def check_only(model: GgufModel, name: str, key: Key) -> None:
    """Raises QCompressError unless the value is in `key.values`, since config.json cannot express any other."""
    value = one_value(model, name)
    if not any(isinstance(value, bool) == isinstance(one, bool) and value == one for one in key.values):
        raise model.fail(f"{name} is {shown(value)}: {key.meaning}", "import another model")


def shown(value: Any) -> str:
    """A value as short text for an error line."""
    text = repr(value.tolist() if isinstance(value, np.ndarray) else value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def optional_number(model: GgufModel, name: str, default: float | None = None) -> float | None:
    """A finite number above 0; `default` if the key is missing."""
    return read_value(model, name, Key("number")) if name in model.metadata else default


def optional_count(model: GgufModel, name: str) -> int | None:
    """A whole number of at least 1; None if the key is missing."""
    return read_value(model, name, Key("count")) if name in model.metadata else None
