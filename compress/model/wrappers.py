"""Multimodal models as a table: which language model is inside, and which tensors belong to it.

A wrapper is quantized as its language model. All other tensors, such as those of a vision tower, are copied.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compress.model.config_keys import plain_config

Config = dict[str, Any]
TEXT = "text_config"
PREFIXES = (  # the beginning of a tensor's name in files of a wrapper -> in the language model
    ("model.language_model.", "model."),
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
    ("lm_head.", "lm_head."),
    ("model.embed_tokens.", "model.embed_tokens."),
    ("model.layers.", "model.layers."),
    ("model.norm.", "model.norm."),
)
CARRIED = ("mtp.", "model.mtp.")  # tensors that no text model has: blocks that draft tokens for another runtime
SHARED_KEYS = ("bos_token_id", "eos_token_id", "pad_token_id", "dtype", "torch_dtype", "transformers_version")
TIE = "tie_word_embeddings"
SECTIONS = "mrope_section"
ROPE_KEYS = ("rope_parameters", "rope_scaling")


@dataclass(frozen=True)
class Wrapper:
    """The language model of a wrapper: model type and class, and the default of tie_word_embeddings in the wrapper.

    If `multimodal_rope`, text has ordinary positions: multimodal rope has three positions per token, which are equal in
    text, so the settings of its sections do nothing.
    """

    model_type: str
    architecture: str
    tied: bool = False
    multimodal_rope: bool = False


WRAPPERS = {
    "qwen3_5": Wrapper("qwen3_5_text", "Qwen3_5ForCausalLM"),
    "qwen3_5_moe": Wrapper("qwen3_5_moe_text", "Qwen3_5MoeForCausalLM"),
    "qwen2_5_vl": Wrapper("qwen2", "Qwen2ForCausalLM", multimodal_rope=True),
    "qwen2_vl": Wrapper("qwen2", "Qwen2ForCausalLM", multimodal_rope=True),
    "qwen3_vl": Wrapper("qwen3", "Qwen3ForCausalLM", multimodal_rope=True),
    "qwen3_vl_moe": Wrapper("qwen3_moe", "Qwen3MoeForCausalLM", multimodal_rope=True),
    "gemma3": Wrapper("gemma3_text", "Gemma3ForCausalLM", tied=True),
    "gemma4": Wrapper("gemma4_text", "Gemma4ForCausalLM", tied=True),
    "mistral3": Wrapper("", "", tied=True),  # a mistral or a ministral3: its text_config says which
}
MISTRAL = {"mistral": "MistralForCausalLM", "ministral3": "Ministral3ForCausalLM"}


def find_wrapper(config: Mapping[str, Any]) -> Wrapper | None:
    """The row of a wrapper's config.json. None for a config.json of a language model."""
    row, text = WRAPPERS.get(str(config.get("model_type"))), config.get(TEXT)
    if text is not None and not isinstance(text, dict):
        return None  # a rule of the door reports it
    if row is None or row.model_type:
        return row
    kind = str((text or {}).get("model_type"))
    return Wrapper(kind, MISTRAL[kind], tied=row.tied) if kind in MISTRAL else None


def text_config(config: Config) -> Config:
    """The config.json of the language model alone; `config` itself if it is not that of a wrapper."""
    row = find_wrapper(config)
    if row is None:
        return config
    inner: Config = plain_config(config.get(TEXT) or flat_text(config))
    shared = {key: config[key] for key in SHARED_KEYS if config.get(key) is not None}
    shared[TIE] = config.get(TIE, inner.get(TIE, row.tied))
    text = inner | shared | {"model_type": row.model_type, "architectures": [row.architecture]}
    text = without_sections(text) if row.multimodal_rope else text
    quantization = config.get("quantization_config")
    return text if quantization is None else text | {"quantization_config": quantization}


def flat_text(config: Config) -> Config:
    """The settings of the language model in a config.json of older versions, which had no text_config."""
    return {key: value for key, value in config.items() if not key.endswith(("_config", "_token_id"))}


def without_sections(config: Config) -> Config:
    """The config without the sections of multimodal rope."""
    config = dict(config)
    for key in ROPE_KEYS:
        rope = config.get(key)
        if isinstance(rope, dict) and (SECTIONS in rope or "mrope" in rope.values()):
            plain = {name: value for name, value in rope.items() if name not in (SECTIONS, "mrope_interleaved")}
            plain = {name: "default" if value == "mrope" else value for name, value in plain.items()}
            plain.pop("type", None)
            config[key] = plain if plain.keys() - {"rope_type"} else None
    return config
