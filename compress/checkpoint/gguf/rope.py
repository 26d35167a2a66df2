"""Rotary positions of a .gguf file as `rope_parameters` of config.json.

llama.cpp keeps linear scaling and YaRN (https://arxiv.org/abs/2309.00071) in metadata. The scaling of Llama 3 and
LongRoPE (https://arxiv.org/abs/2402.13753) are tensors with one factor per frequency.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from compress.checkpoint.gguf.keys import optional_count, optional_number
from compress.checkpoint.gguf.shards import GgufModel
from compress.checkpoint.gguf.tensors import ROPE_FACTORS, dequantize_rows

THETA = 10_000.0  # llama.cpp's value without rope.freq_base
FREQUENCIES, LONG, SHORT = ROPE_FACTORS
LENGTHS = tuple(2**power for power in range(8, 21))  # original contexts
RATIOS = (4.0, 2.0, 8.0)  # high_freq_factor where low_freq_factor is 1; 4 in all models of Llama 3
TOLERANCE = 1e-4

Rope = dict[str, Any]


def rope_parameters(model: GgufModel, prefix: str, rotary: int) -> Rope:
    """`rope_parameters` of config.json for `rotary` rotated channels per head.

    Raises QCompressError if config.json cannot express the scaling.
    """
    theta = optional_number(model, f"{prefix}.rope.freq_base", THETA)
    rope: Rope = {"rope_theta": theta}
    kind = scaling_type(model, prefix)
    if LONG in model.tensors or SHORT in model.tensors:
        if FREQUENCIES in model.tensors:
            raise model.fail(f"has both {FREQUENCIES} and {LONG}", "import another model")
        return rope | longrope(model, prefix, rotary, kind)
    if FREQUENCIES in model.tensors:
        if kind != "none":
            raise model.fail(f"has both {FREQUENCIES} and {prefix}.rope.scaling.type {kind}", "import another model")
        return rope | factors_scaling(model, factors(model, FREQUENCIES, rotary), float(theta or THETA))
    if kind == "linear":
        return rope | {"rope_type": "linear", "factor": scaling_factor(model, prefix)}
    if kind == "yarn":
        return rope | yarn(model, prefix)
    if kind == "longrope":
        raise model.fail(f"{prefix}.rope.scaling.type is longrope, but {LONG} is missing")
    return rope | {"rope_type": "default"}


def scaling_type(model: GgufModel, prefix: str) -> str:
    """The type of scaling: none, linear, yarn or longrope. As in llama.cpp, a factor without a type scales linearly."""
    name = f"{prefix}.rope.scaling.type"
    kind = model.metadata.get(name)
    if kind is None:
        return "none" if scaling_factor(model, prefix) == 1 else "linear"
    if kind not in ("none", "linear", "yarn", "longrope"):
        raise model.fail(f"{name} is {kind!r}, not none, linear, yarn or longrope", "import another model")
    return "none" if kind == "linear" and scaling_factor(model, prefix) == 1 else str(kind)


def scaling_factor(model: GgufModel, prefix: str) -> float:
    """The factor by which scaling makes the context longer; 1 if the key is missing."""
    for name in (f"{prefix}.rope.scaling.factor", f"{prefix}.rope.scale_linear"):
        if model.metadata.get(name, 0) != 0:  # llama.cpp reads 0 as 1
            return float(optional_number(model, name) or 1.0)
    return 1.0


def yarn(model: GgufModel, prefix: str) -> Rope:
    """The parameters of YaRN.

    llama.cpp multiplies the magnitude 1 + ln(factor) / 10 by attn_factor. In transformers, attention_factor is the
    whole magnitude.
    """
    factor = scaling_factor(model, prefix)
    original = optional_count(model, f"{prefix}.rope.scaling.original_context_length")
    original = original or optional_count(model, f"{prefix}.context_length")
    rope: Rope = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
    for key, name in (("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")):
        if (value := optional_number(model, f"{prefix}.rope.scaling.{name}")) is not None:
            rope[key] = value
    multiplier = optional_number(model, f"{prefix}.rope.scaling.attn_factor", 1.0)
    attention = optional_number(model, f"{prefix}.rope.scaling.yarn_attn_factor")
    if attention is None and multiplier != 1:
        attention = float(multiplier or 1.0) * (1 + 0.1 * math.log(factor))
    return rope if attention is None else rope | {"attention_factor": attention}


def factors(model: GgufModel, name: str, rotary: int) -> np.ndarray:
    """The float32 factors (rotary / 2,) of a tensor.

    Raises QCompressError if the tensor has another length or a factor is not above 0.
    """
    if name not in model.tensors:
        raise model.fail(f"lacks the tensor {name}")
    tensor = model.tensors[name]
    if tensor.shape != (rotary // 2,):
        raise model.fail(f"{name} has shape {tensor.shape}, but {rotary} rotated channels need ({rotary // 2},)")
    values = dequantize_rows(tensor, slice(0, 1))[0]
    if not (np.isfinite(values) & (values > 0)).all():
        raise model.fail(f"{name} has a factor that is not above 0")
    return values


def factors_scaling(model: GgufModel, values: np.ndarray, theta: float) -> Rope:
    """The scaling that has the factors `values`: none, linear, or that of Llama 3 with `low_freq_factor` 1."""
    if np.allclose(values, values[0], rtol=TOLERANCE):
        factor = float(values[0])
        return {"rope_type": "default"} if abs(factor - 1) < TOLERANCE else {"rope_type": "linear", "factor": factor}
    factor = rounded_if_whole(float(values.max()))
    for ratio, original in llama3_candidates(values, theta, factor) if factor > 1 else ():
        if np.allclose(values, llama3_factors(len(values), theta, factor, ratio, original), rtol=TOLERANCE):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": 1.0,
                "high_freq_factor": ratio,
                "original_max_position_embeddings": original,
            }
    raise model.fail(f"{FREQUENCIES} is not the scaling of Llama 3", "import another model")


def llama3_candidates(values: np.ndarray, theta: float, factor: float) -> Iterator[tuple[float, int]]:
    """Pairs (high_freq_factor, original context) to try: first the usual ones, then those computed from the ramp.

    The ramp is where `values` lie between 1 and `factor`: original / wavelength = 1 + smooth · (high_freq_factor - 1).
    """
    yield from ((ratio, original) for ratio in RATIOS for original in (8192, *LENGTHS))
    ramp = (values > 1 + TOLERANCE) & (values < factor * (1 - TOLERANCE))
    waves = wavelengths(len(values), theta)[ramp]
    smooth = (1 / values[ramp] - 1 / factor) / (1 - 1 / factor)
    for ratio in RATIOS if len(waves) else ():
        yield ratio, round(float(waves[0] * (1 + smooth[0] * (ratio - 1))))
    if len(waves) >= 2 and smooth[0] * waves[0] != smooth[-1] * waves[-1]:
        span = (waves[-1] - waves[0]) / (smooth[0] * waves[0] - smooth[-1] * waves[-1])
        if span > 0 and math.isfinite(span):
            yield 1 + float(span), round(float(waves[0] * (1 + smooth[0] * span)))


def rounded_if_whole(value: float) -> float:
    """The whole number that a float32 was rounded from, else the value."""
    return float(round(value)) if abs(value - round(value)) < TOLERANCE else value


def llama3_factors(count: int, theta: float, factor: float, ratio: float, original: int) -> np.ndarray:
    """The divisors of the frequencies in Llama 3.1: 1 for short waves, `factor` for long ones, a ramp between them."""
    smooth = np.clip((original / wavelengths(count, theta) - 1) / (ratio - 1), 0, 1)
    return 1 / ((1 - smooth) / factor + smooth)


def wavelengths(count: int, theta: float) -> np.ndarray:
    """The wavelength of each rotated pair of channels (count,), in tokens per full turn."""
    return 2 * math.pi * theta ** (np.arange(count) / count)


def longrope(model: GgufModel, prefix: str, rotary: int, kind: str) -> Rope:
    """The parameters of LongRoPE. `attention_factor` is left out if it equals the default of transformers."""
    if prefix != "phi3" or kind not in ("none", "longrope"):
        raise model.fail(f"has {LONG}, but {prefix} with {kind} scaling does not use it", "import another model")
    original = optional_count(model, f"{prefix}.rope.scaling.original_context_length")
    context = optional_count(model, f"{prefix}.context_length")
    if original is None or context is None:
        raise model.fail(f"has {LONG}, but {prefix}.rope.scaling.original_context_length is missing")
    rope: Rope = {
        "rope_type": "longrope",
        "long_factor": factors(model, LONG, rotary).tolist(),
        "short_factor": factors(model, SHORT, rotary).tolist(),
    }
    scale = context / original
    usual = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
    magnitude = optional_number(model, f"{prefix}.rope.scaling.attn_factor", usual)
    return (
        rope if math.isclose(magnitude or usual, usual, rel_tol=TOLERANCE) else rope | {"attention_factor": magnitude}
    )
