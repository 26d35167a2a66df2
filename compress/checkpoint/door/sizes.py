"""Compare the sizes in config.json with the headers of the weight files.

transformers allocates memory for the sizes that config.json declares. So a size for which the files are too small is
refused before a model is built.
"""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from compress.checkpoint.door.config_values import BLOCK_KEYS, WIDTH_KEYS, is_size
from compress.checkpoint.door.fault import Fault, Faults
from compress.checkpoint.door.files import CONFIG

if TYPE_CHECKING:
    from compress.checkpoint.read import Checkpoint, TensorInfo

BLOCK = re.compile(r"(?:^|\.)(?:layers|h|blocks|layer)\.(\d+)\.")
EMBEDDING = re.compile(r"(?:^|\.)(?:embed_tokens|wte|embed_in|word_embeddings|tok_embeddings)\.weight$")
MAX_BLOCKS = 1000  # published models have at most 130
MAX_ELEMENTS = 2**34  # of one matrix; published models have at most 2**33
FEWEST_BITS = 2  # per weight on disk
EXPERT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts")
CURE = "correct it, or fetch the checkpoint again"


def first_size(config: Mapping[str, Any], keys: tuple[str, ...]) -> tuple[str, int] | None:
    """The first of `keys` that has a valid size, and the size."""
    return next(((key, config[key]) for key in keys if is_size(config.get(key))), None)


def count_blocks(names: Mapping[str, Any]) -> int:
    """The number of decoder blocks that these tensor names belong to, 0 if no name has a block number."""
    return max((int(match[1]) + 1 for name in names if (match := BLOCK.search(name))), default=0)


def matrices(config: Mapping[str, Any]) -> dict[str, int]:
    """{keys of the two sizes: number of elements} of the largest matrices that a config.json declares in a block."""
    width = first_size(config, WIDTH_KEYS)
    if width is None:
        return {}
    name, size = width
    heads = first_size(config, ("num_attention_heads", "n_head"))
    products = {key: config.get(key) for key in ("vocab_size", "intermediate_size", "n_inner", "ffn_dim", *EXPERT_KEYS)}
    sizes = {f"{key} × {name}": value * size for key, value in products.items() if is_size(value)}
    if heads and is_size(config.get("head_dim")):
        sizes[f"{heads[0]} × head_dim × {name}"] = heads[1] * config["head_dim"] * size
    return sizes | {name: size}


def declared_faults(config: Mapping[str, Any]) -> Faults:
    """Sizes in config.json that are larger than in any published model."""
    blocks = first_size(config, BLOCK_KEYS)
    if blocks and blocks[1] > MAX_BLOCKS:
        yield Fault(CONFIG, blocks[0], f"{blocks[1]:,} blocks, but at most {MAX_BLOCKS:,} are supported", CURE)
    for keys, elements in matrices(config).items():
        if elements > MAX_ELEMENTS:
            yield Fault(CONFIG, keys, f"{elements:,} numbers in one matrix, more than any model has", CURE)


def size_faults(checkpoint: "Checkpoint") -> Faults:
    """Sizes in config.json that the headers of the weight files contradict."""
    config, tensors = checkpoint.config, checkpoint.tensors
    yield from block_faults(config, tensors)
    elements = 8 * sum(info.bytes for info in tensors.values()) // FEWEST_BITS
    for keys, needed in matrices(config).items():
        if needed > elements:
            text = f"{needed:,} numbers, but the weight files have room for {elements:,} at most"
            yield Fault(CONFIG, keys, text, CURE)
    yield from declared_faults(config)
    for name, info in tensors.items():
        if EMBEDDING.search(name):
            yield from embedding_faults(config, name, info)


def block_faults(config: Mapping[str, Any], tensors: Mapping[str, "TensorInfo"]) -> Faults:
    """num_hidden_layers must not exceed the blocks on disk."""
    declared, stored = first_size(config, BLOCK_KEYS), count_blocks(tensors)
    if declared and stored and declared[1] > stored:
        yield Fault(CONFIG, declared[0], f"{declared[1]:,}, but the weights have {stored:,} blocks", CURE)


def embedding_faults(config: Mapping[str, Any], name: str, info: "TensorInfo") -> Faults:
    """vocab_size must equal the rows of the embedding."""
    rows = config.get("vocab_size")
    if is_size(rows) and len(info.shape) == 2 and info.shape[0] != rows:
        yield Fault(CONFIG, "vocab_size", f"{rows:,}, but {name} has {info.shape[0]:,} rows", CURE)
