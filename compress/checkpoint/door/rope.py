"""Rotary embeddings in two spellings: transformers 4 reads rope_theta and rope_scaling, transformers 5 rope_parameters.

If config.json has both spellings, they must agree, because some loaders follow one and some the other. Gemma 3 has
settings per layer type: the old keys describe full_attention, and rope_local_base_freq describes sliding_attention.
Source: transformers 5.19, modeling_rope_utils.py and models/gemma3/configuration_gemma3.py.
"""

import json
from collections.abc import Mapping
from typing import Any

from compress.checkpoint.door.config_values import is_number, is_size
from compress.checkpoint.door.fault import Fault, Faults
from compress.checkpoint.door.files import CONFIG, json_kind

FULL, SLIDING = "full_attention", "sliding_attention"
FACTORS = ("factor",)
REQUIRED: dict[str, tuple[str, ...]] = {  # rope type -> keys that transformers reads without a default
    "default": (),
    "linear": FACTORS,
    "dynamic": FACTORS,
    "yarn": FACTORS,
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "longrope": ("short_factor", "long_factor"),
    "proportional": (),
}
RENAMED = {"phi3": {"su": "longrope", "yarn": "longrope"}}  # model type -> old rope types that transformers renames
LISTS = ("short_factor", "long_factor")
NUMBERS = (
    *("factor", "low_freq_factor", "high_freq_factor", "rope_theta", "beta_fast", "beta_slow", "partial_rotary_factor"),
)
SCALES = ("attention_factor", "mscale", "mscale_all_dim")
FAMILIAR = frozenset({"rope_type", "rope_theta", "partial_rotary_factor"})
CURE = "keep one of the two spellings"
Rope = Mapping[str, Any]


def rope_faults(config: Mapping[str, Any]) -> Faults:
    """Rope settings that transformers cannot use, and old and new spellings that contradict each other."""
    new, old = config.get("rope_parameters"), config.get("rope_scaling")
    for key, value in (("rope_parameters", new), ("rope_scaling", old)):
        if value is not None and not isinstance(value, dict):
            yield Fault(CONFIG, key, f"{json_kind(value)}, expected an object", "correct it, or remove it")
            return
    for key, rope in rope_parts(config):
        yield from value_faults(key, rope, config)
    yield from contradictions(config, new or {}, old)


def rope_parts(config: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """(key, settings) of every set of rope settings in a config.json: one set per layer type, or a single set."""
    new, old = config.get("rope_parameters") or {}, config.get("rope_scaling")
    parts = [("rope_scaling", old)] if old else []
    if is_nested(new):
        return parts + [(f"rope_parameters.{key}", rope) for key, rope in new.items() if rope is not None]
    return parts + ([("rope_parameters", new)] if new else [])


def is_nested(rope: Rope) -> bool:
    """Whether rope_parameters has one set of settings per layer type."""
    return (
        bool(rope) and all(value is None or isinstance(value, dict) for value in rope.values()) and any(rope.values())
    )


def value_faults(key: str, rope: Any, config: Mapping[str, Any]) -> Faults:
    """An unknown rope type, a missing key, or a value of the wrong type in one set of settings."""
    if not isinstance(rope, dict):
        yield Fault(CONFIG, key, f"{json_kind(rope)}, expected an object", "correct it, or remove it")
        return
    kind = rope_type(rope, config)
    if not isinstance(kind, str) or kind not in REQUIRED:
        types = ", ".join(REQUIRED)
        yield Fault(CONFIG, key, f"rope type {json.dumps(kind)[:60]} is unknown to transformers", f"use one of {types}")
        return
    for name in REQUIRED[kind]:
        if rope.get(name) is None and not (name in config and config[name] is not None):
            yield Fault(CONFIG, key, f"rope type {kind} needs {name}", "add it, or fetch the file again")
    for name, value in rope.items():
        if value is not None and not valid(name, value):
            text = f"{value!r:.60} has the wrong type or is out of range"
            yield Fault(CONFIG, f"{key}.{name}", text, "correct it, or fetch the file again")
    old, new = rope.get("type"), rope.get("rope_type")
    if None not in (old, new) and old != new and old != "mrope":
        yield Fault(CONFIG, key, f"type is {old!r:.60}, but rope_type is {new!r:.60}", CURE)


def rope_type(rope: Rope, config: Mapping[str, Any]) -> Any:
    """The rope type of one set of settings, under the name that transformers 5 uses."""
    kind = rope.get("rope_type", rope.get("type", "default"))
    renamed = RENAMED.get(str(config.get("model_type")), {})
    return renamed.get(kind, kind) if isinstance(kind, str) else kind


def valid(name: str, value: Any) -> bool:
    """Whether the value of one rope setting has the right type."""
    if name in LISTS:
        return isinstance(value, list) and bool(value) and all(map(is_number, value))
    if name == "original_max_position_embeddings":
        return is_size(value)
    if name in SCALES:
        return is_number(value) and value >= 0
    return name not in NUMBERS or (is_number(value) and value > 0)


def contradictions(config: Mapping[str, Any], new: Rope, old: Rope | None) -> Faults:
    """Settings that differ between the old and the new spelling: bases, partial rotation and scaling."""
    full = (new.get(FULL) or {}) if is_nested(new) else new
    sliding = (new.get(SLIDING) or {}) if is_nested(new) else {}
    where = f"rope_parameters.{FULL}" if is_nested(new) else "rope_parameters"
    pairs = [
        ("rope_theta", config.get("rope_theta"), f"{where}.rope_theta", full.get("rope_theta")),
        ("rope_local_base_freq", config.get("rope_local_base_freq"), SLIDING, sliding.get("rope_theta")),
        ("rope_scaling.rope_theta", (old or {}).get("rope_theta"), "rope_theta", config.get("rope_theta")),
        ("rope_scaling.rope_theta", (old or {}).get("rope_theta"), f"{where}.rope_theta", full.get("rope_theta")),
        ("partial_rotary_factor", config.get("partial_rotary_factor"), where, full.get("partial_rotary_factor")),
    ]
    for key, value, other, theirs in pairs:
        if None not in (value, theirs) and value != theirs:
            yield Fault(CONFIG, key, f"{value}, but {other} is {theirs}", CURE)
    if new and "rope_scaling" in config and full:
        yield from scaling_faults(config, where, full, old or {})


def scaling_faults(config: Mapping[str, Any], where: str, new: Rope, old: Rope) -> Faults:
    """Settings of rope_scaling that differ from rope_parameters: transformers 5 prefers rope_scaling, if it exists."""
    kinds = rope_type(old, config), rope_type(new, config)
    if kinds[0] != kinds[1]:
        yield Fault(CONFIG, "rope_scaling", f"type {kinds[0]}, but {where} has type {kinds[1]}", CURE)
        return
    for name in sorted((old.keys() | new.keys()) - FAMILIAR - {"type"}):
        ours, theirs = (with_default(name, rope, config) for rope in (old, new))
        if kinds[0] != "default" and ours != theirs:
            yield Fault(CONFIG, f"rope_scaling.{name}", f"{ours}, but {where}.{name} is {theirs}", CURE)


def with_default(name: str, rope: Rope, config: Mapping[str, Any]) -> Any:
    """The rope setting `name`. The context length before scaling defaults to that of the model."""
    if rope.get(name) is None and name == "original_max_position_embeddings":
        return config.get(name) or config.get("max_position_embeddings")
    return rope.get(name)


OLD_KEYS = {"phi3": ("type", "short_factor", "long_factor")}  # transformers 4 accepts no other keys there
LOCAL_THETA = ("gemma3_text", "gemma3n_text")  # model types whose old spelling has rope_local_base_freq


def both_rope_spellings(config: dict[str, Any], resolved: Rope | None) -> dict[str, Any]:
    """The rope keys of a config.json in both spellings, from the settings that transformers resolved from it.

    {} if the model has no rope settings. An existing rope_scaling is kept: `rope_faults` has compared it before.
    """
    if not resolved:
        return {}
    model_type = str(config.get("model_type"))
    keys: dict[str, Any] = {"rope_parameters": dict(resolved)}
    full = resolved
    if is_nested(resolved):
        if model_type not in LOCAL_THETA:
            return keys
        full, sliding = (resolved.get(name) or {} for name in (FULL, SLIDING))
        keys |= {"rope_local_base_freq": sliding["rope_theta"]} if "rope_theta" in sliding else {}
    keys |= {"rope_theta": full["rope_theta"]} if full.get("rope_theta") is not None else {}
    if full.get("rope_type", "default") != "default" and not config.get("rope_scaling"):
        keys["rope_scaling"] = old_scaling(model_type, full)
    return keys


def old_scaling(model_type: str, rope: Rope) -> dict[str, Any]:
    """rope_scaling for transformers 4 from the settings of transformers 5."""
    scaling = {name: value for name, value in rope.items() if name not in ("rope_theta", "partial_rotary_factor")}
    names = OLD_KEYS.get(model_type)
    return {name: (scaling | {"type": rope["rope_type"]})[name] for name in names} if names else scaling
