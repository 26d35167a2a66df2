"""The metadata of a .gguf file from config.json, by the tables that `qcompress import` reads with.

`export.py` reads the written file back with the importer and compares the two configs. So what a key cannot express is
an error, and never a silent default of llama.cpp.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from compress.checkpoint.gguf.architectures import ARCHITECTURES, Architecture
from compress.checkpoint.gguf.rope import llama3_factors
from compress.core.errors import BadValueError

Metadata = dict[str, Any]
Rope = dict[str, Any]
MODEL_TYPES = {"mistral": "llama", "ministral3": "llama"} | {
    ARCHITECTURES[name].model_type: name for name in ("llama", "qwen2", "qwen3", "gemma3", "phi3", "granite", "smollm3")
}
TYPED = {"count": int, "epsilon": float, "number": float}  # kind of a key -> type of its value


@dataclass
class Exported:
    """Metadata by key without the architecture's prefix, and extra tensors by name: factors of rotary frequencies."""

    values: Metadata = field(default_factory=dict)
    tensors: dict[str, np.ndarray] = field(default_factory=dict)


def find_target(model_type: str) -> tuple[str, Architecture]:
    """The name and the table row of the llama.cpp architecture for a model type.

    Raises ValueError if llama.cpp has no such architecture.
    """
    name = MODEL_TYPES.get(model_type)
    if name is None:
        raise BadValueError(f"model_type {model_type}: cannot be written as .gguf; supported: {', '.join(MODEL_TYPES)}")
    return name, ARCHITECTURES[name]


def export_config(config: Any, name: str, architecture: Architecture) -> Exported:
    """The architecture's metadata and extra tensors for a model's config."""
    exported = Exported()
    for key, row in architecture.keys.items():
        value = getattr(config, row.config, None) if row.config else None
        if value is not None and row.kind in TYPED:
            exported.values[key] = TYPED[row.kind](value)
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if architecture.head_dim:
        exported.values |= {"attention.key_length": size, "attention.value_length": size}
    export_rope(config, name, size, exported)
    if name in EXTRAS:
        exported.values |= EXTRAS[name](config)
    return exported


def export_rope(config: Any, name: str, size: int, exported: Exported) -> None:
    """Add the metadata and tensors of a config's rotary positions to `exported`."""
    rope: Rope = dict(config.rope_parameters or {})
    if name == "gemma3":
        exported.values["rope.freq_base_swa"] = float(rope["sliding_attention"]["rope_theta"])
        rope = dict(rope["full_attention"])
    channels = int(size * (rope.get("partial_rotary_factor") or getattr(config, "partial_rotary_factor", None) or 1))
    exported.values |= {"rope.dimension_count": channels, "rope.freq_base": float(rope["rope_theta"])}
    kind = rope.get("rope_type", "default")
    if kind not in SCALINGS:
        raise BadValueError(f"rope_type {kind}: cannot be written as .gguf; supported: {', '.join(SCALINGS)}")
    SCALINGS[kind](config, rope, exported)


def no_scaling(config: Any, rope: Rope, exported: Exported) -> None:
    """Rotary positions without scaling need no metadata."""


def linear(config: Any, rope: Rope, exported: Exported) -> None:
    exported.values |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope["factor"])}


def yarn(config: Any, rope: Rope, exported: Exported) -> None:
    """YaRN. The key attn_factor is the config's attention factor without the part that llama.cpp adds.

    llama.cpp multiplies attn_factor by 1 + ln(factor) / 10.
    """
    factor = float(rope["factor"])
    original = rope.get("original_max_position_embeddings") or config.max_position_embeddings
    values = {"type": "yarn", "factor": factor, "original_context_length": int(original)}
    if rope.get("attention_factor") is not None:
        values["attn_factor"] = rope["attention_factor"] / (1 + 0.1 * math.log(factor))
    for key in ("beta_fast", "beta_slow"):
        if rope.get(key) is not None:
            values[f"yarn_{key}"] = float(rope[key])
    exported.values |= {f"rope.scaling.{key}": value for key, value in values.items()}


def llama3(config: Any, rope: Rope, exported: Exported) -> None:
    """The scaling of Llama 3 as one divisor per frequency.

    The formula is that of `llama3_factors`, in which low_freq_factor is 1.
    """
    count, original = exported.values["rope.dimension_count"] // 2, rope["original_max_position_embeddings"]
    divisors = llama3_factors(count, rope["rope_theta"], rope["factor"], rope["high_freq_factor"], original)
    exported.tensors["rope_freqs.weight"] = divisors.astype(np.float32)


def longrope(config: Any, rope: Rope, exported: Exported) -> None:
    """LongRoPE (https://arxiv.org/abs/2402.13753): one factor per frequency, for long and for short contexts."""
    original = rope.get("original_max_position_embeddings") or config.original_max_position_embeddings
    exported.values |= {"rope.scaling.type": "longrope", "rope.scaling.original_context_length": int(original)}
    scale = config.max_position_embeddings / original
    usual = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
    exported.values["rope.scaling.attn_factor"] = float(rope.get("attention_factor") or usual)
    for name in ("long", "short"):
        exported.tensors[f"rope_factors_{name}.weight"] = np.array(rope[f"{name}_factor"], np.float32)


SCALINGS: dict[str, Callable[[Any, Rope, Exported], None]] = {
    "default": no_scaling,
    "linear": linear,
    "yarn": yarn,
    "llama3": llama3,
    "longrope": longrope,
}


def granite(config: Any) -> Metadata:
    return {"attention.scale": float(config.attention_multiplier)}


def phi3(config: Any) -> Metadata:
    """The attention window and the context length before scaling. A window of 0 is full attention.

    llama.cpp reads both keys for this architecture.
    """
    original = getattr(config, "original_max_position_embeddings", None) or config.max_position_embeddings
    window = int(config.sliding_window or 0)
    return {"attention.sliding_window": window, "rope.scaling.original_context_length": int(original)}


def gemma3(config: Any) -> Metadata:
    """After how many blocks full attention comes again, if it does so regularly. llama.cpp's default is 6."""
    full = [kind == "full_attention" for kind in config.layer_types]
    periods = (one for one in range(1, len(full) + 1) if full == [(block + 1) % one == 0 for block in range(len(full))])
    period = next(periods, None)
    return {} if period is None else {"attention.sliding_window_pattern": period}


EXTRAS: dict[str, Callable[[Any], Metadata]] = {"gemma3": gemma3, "granite": granite, "phi3": phi3}
