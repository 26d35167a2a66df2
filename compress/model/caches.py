"""What a block remembers between two tokens, if that is not only keys and values: latents, and states of fixed size.

    latent attention   one latent and one rotary key per token, for all heads (DeepSeek)
    gated delta-net    a matrix per value head, and the last inputs of a convolution (Qwen3-Next, Qwen3.5)
    Mamba 2            a matrix per head, and the last inputs of a convolution (Granite 4, Falcon-H1, Nemotron-H)
    short convolution  its last inputs (LFM2)

Sizes follow vLLM's mamba_utils.py. States are counted in float32, as these models ask for; convolutions in 16 bits.
"""

from typing import Any, NamedTuple

from compress.model.architectures import find_architecture
from compress.model.shapes import block_lists, sliding_window

Config = dict[str, Any]
STATE_BYTES = 4  # per number
FULL, SLIDING = "full_attention", "sliding_attention"
STATES = ("linear_attention", "mamba", "conv")
NEITHER = ("mlp", "moe")
MARKS = ("kv_lora_rank", "linear_num_key_heads", "mamba_n_heads", "mamba_num_heads", "conv_L_cache")


class BlockCache(NamedTuple):
    """The cache of a block: bytes per token, the window in tokens or None, and bytes that do not grow."""

    bytes: int
    window: int | None = None
    fixed: int = 0


def other_caches(config: Config, itemsize: int, keys: int, gpus: int = 1) -> list[BlockCache] | None:
    """The cache of every block, summed over `gpus` GPUs. None for a model of keys and values alone.

    `keys` are the bytes of keys and values per token in a block with attention. `itemsize` is that of the model's
    dtype, in which latents and the inputs of convolutions are kept. Every GPU has all latents.
    """
    if not any(config.get(key) for key in MARKS):
        return None
    if config.get("kv_lora_rank"):
        latent = (config["kv_lora_rank"] + config["qk_rope_head_dim"]) * itemsize * gpus
        return [BlockCache(latent)] * int(config["num_hidden_layers"])
    attention, state = BlockCache(keys), BlockCache(0, fixed=state_bytes(config, itemsize))
    kinds = block_lists(config).get("layer_types")
    if kinds is None:  # both side by side in every block
        return [attention._replace(fixed=state.fixed)] * int(config["num_hidden_layers"])
    sliding, both = attention._replace(window=sliding_window(config)), attention._replace(fixed=state.fixed)
    by_kind = {
        FULL: attention,
        SLIDING: sliding,
        **dict.fromkeys(STATES, state),
        **dict.fromkeys(NEITHER, BlockCache(0)),
    }
    return [by_kind.get(kind, both) for kind in kinds]


def full_config(config: Config) -> Config:
    """The config with the defaults of its model type, if the table of architectures does not cover it."""
    if find_architecture(config) is not None or "model_type" not in config:
        return config
    from compress.model.blocks import make_config

    return {**make_config(config).to_dict(), **config}


def state_bytes(config: Config, itemsize: int) -> int:
    """The bytes of the state of one request in one block without attention."""
    if config.get("conv_L_cache"):
        return int((config["conv_L_cache"] - 1) * config["hidden_size"] * itemsize)
    if config.get("linear_num_key_heads"):
        key, value = (config[f"linear_{name}_head_dim"] for name in ("key", "value"))
        channels = 2 * config["linear_num_key_heads"] * key + config["linear_num_value_heads"] * value
        matrix = config["linear_num_value_heads"] * key * value
        return int((config["linear_conv_kernel_dim"] - 1) * channels * itemsize + matrix * STATE_BYTES)
    heads = config.get("mamba_n_heads") or config["mamba_num_heads"]
    width = config.get("mamba_d_head") or config["mamba_head_dim"]
    groups, state = first(config, ("mamba_n_groups", "n_groups")), first(config, ("mamba_d_state", "ssm_state_size"))
    inner = heads * width if isinstance(width, int) else int(config["mamba_expand"] * config["hidden_size"])
    kernel = first(config, ("mamba_d_conv", "conv_kernel"))
    return (kernel - 1) * (inner + 2 * groups * state) * itemsize + inner * state * STATE_BYTES


def first(config: Config, keys: tuple[str, ...]) -> int:
    """The first of `keys` that a config.json has."""
    return int(next(config[key] for key in keys if config.get(key) is not None))
