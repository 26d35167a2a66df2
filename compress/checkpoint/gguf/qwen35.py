"""Qwen 3.5: most blocks have linear attention. llama.cpp stores the value heads of these blocks in another order."""

import math
from typing import Any

import numpy as np

from compress.checkpoint.gguf.keys import count, elsewhere, optional_count, shown
from compress.checkpoint.gguf.shards import GgufModel

Config = dict[str, Any]
QWEN35_SIZES = ("ssm.conv_kernel", "ssm.state_size", "ssm.group_count", "ssm.time_step_rank", "ssm.inner_size")
MAX_LINEAR = 65_536
QWEN35 = {
    "full_attention_interval": count("full_attention_interval"),
    "rope.dimension_sections": elsewhere("`mrope_section`"),
    "ssm.conv_kernel": elsewhere("`linear_conv_kernel_dim`"),
    "ssm.state_size": elsewhere("`linear_key_head_dim`"),
    "ssm.group_count": elsewhere("`linear_num_key_heads`"),
    "ssm.time_step_rank": elsewhere("`linear_num_value_heads`"),
    "ssm.inner_size": elsewhere("`linear_value_head_dim`, for all value heads"),
    "nextn_predict_layers": elsewhere("the number of last blocks, for multi-token prediction, that are left out"),
}


def finish_qwen35(model: GgufModel, config: Config) -> Config:
    """The keys of config.json for linear attention. Blocks for multi-token prediction are left out of the model."""
    sizes = {name: optional_count(model, f"qwen35.{name}") for name in QWEN35_SIZES}
    for name, size in sizes.items():
        if size is None or size > MAX_LINEAR:
            raise model.fail(f"qwen35.{name} is {size}, not a number up to {MAX_LINEAR:,}")
    heads, inner, keys = (int(sizes[f"ssm.{name}"] or 0) for name in ("time_step_rank", "inner_size", "group_count"))
    further = model.metadata.get("qwen35.nextn_predict_layers", 0)
    blocks = config["num_hidden_layers"] - further if isinstance(further, int) else 0
    if inner % heads or heads % keys or not 1 <= blocks <= config["num_hidden_layers"]:
        raise model.fail("the sizes in qwen35.ssm.*, or nextn_predict_layers and block_count, contradict each other")
    model.leave_out(range(blocks, config["num_hidden_layers"]))
    sections = model.metadata.get("qwen35.rope.dimension_sections")
    if not isinstance(sections, np.ndarray) or len(sections) > 4:
        raise model.fail(f"qwen35.rope.dimension_sections is {shown(sections)}, not a list of at most 4 numbers")
    mrope = {"mrope_section": [int(one) for one in sections if one], "mrope_interleaved": True}
    linear = {
        "linear_conv_kernel_dim": sizes["ssm.conv_kernel"],
        "linear_key_head_dim": sizes["ssm.state_size"],
        "linear_num_key_heads": keys,
        "linear_num_value_heads": heads,
        "linear_value_head_dim": inner // heads,
    }
    return linear | {"num_hidden_layers": blocks, "rope_parameters": config["rope_parameters"] | mrope}


def qwen35_layout(name: str, config: Config) -> dict[str, Any]:
    """The order of rows or columns of a tensor with value heads.

    The file lists value heads as (heads per key head, key heads), transformers as (key heads, heads per key head).
    """
    part = name.removeprefix("blk.").partition(".")[2]
    keys, size = config["linear_num_key_heads"], config["linear_value_head_dim"]
    before = 2 * keys * config["linear_key_head_dim"] if part.startswith(("attn_qkv", "ssm_conv1d")) else 0
    width = 1 if part.startswith(("ssm_a", "ssm_beta", "ssm_dt")) else size
    shape = (config["linear_num_value_heads"] // keys, keys, width)
    places = before + np.arange(math.prod(shape)).reshape(shape).swapaxes(0, 1).reshape(-1)
    order = np.concatenate([np.arange(before), places])
    if part == "ssm_out.weight":
        return {"columns": order}
    moved = ("attn_qkv", "attn_gate", "ssm_conv1d", "ssm_alpha", "ssm_beta", "ssm_dt", "ssm_a")
    return {"rows": order, "logarithm": part == "ssm_a"} if part.startswith(moved) else {}
