"""The parameters, linears and vocabulary that a config.json describes. No weight is read.

Known model types are read from the table in `architectures.py`. All others are built by transformers without weights.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from compress.model.architectures import ModelParts, Part, find_architecture, layer_lists, sizes_of
from compress.model.families import find_family

Config = dict[str, Any]
EMBEDDING, HEAD, NORM, BLOCKS = "model.embed_tokens", "lm_head", "model.norm", "model.layers"
EXPERT = re.compile(r"\.\d+\.")
LAYER_LISTS = ("layer_types", "no_rope_layers")  # config lists with one entry per block


@dataclass(frozen=True)
class Linear:
    """The shape of a linear, and whether it has a bias."""

    out: int
    inn: int
    bias: bool = False


@dataclass(frozen=True)
class Vocabulary:
    """The paths of embedding and head, and the shape (rows, width) of both. `tied` is True if they are one matrix."""

    embedding: str
    head: str
    rows: int
    width: int
    tied: bool


@dataclass(frozen=True)
class ModelShapes:
    """What a config.json describes.

    `parameters` are the stored ones in the model's order; a tied head is not stored. `linears` are those of the blocks.
    `state_names` are all names of the state dict. `ignored` are patterns of tensors that transformers leaves unread.
    `renamed` is True if transformers renames tensors when it loads them.
    """

    model_type: str
    parameters: dict[str, tuple[int, ...]]
    linears: dict[str, Linear]
    vocabulary: Vocabulary
    blocks: tuple[str, ...]
    state_names: frozenset[str]
    ignored: tuple[str, ...] = ()
    renamed: bool = False

    @property
    def stacked(self) -> bool:
        """Whether experts are stacked in 3-D parameters, whose names in files are unknown."""
        return any(".experts." in name and len(shape) == 3 for name, shape in self.parameters.items())


@dataclass(frozen=True)
class Shape:
    """The sizes of a student, and the head_dim that follows from them."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int

    @property
    def group(self) -> int:
        """Query heads per KV head."""
        return self.num_heads // self.num_kv_heads

    def same_width(self, other: "Shape") -> bool:
        return all(getattr(self, f.name) == getattr(other, f.name) for f in fields(self) if f.name != "num_layers")


def model_shapes(config: Config) -> ModelShapes:
    """The shapes of a causal LM. Raises ValueError if transformers cannot build it, or finds no list of blocks."""
    row = find_architecture(config)
    if row is not None:
        return table_shapes(config, row)
    from compress.model.blocks import skeleton_shapes

    return skeleton_shapes(config)


def table_shapes(config: Config, row: ModelParts) -> ModelShapes:
    """The shapes of a familiar config.json of a known type."""
    sizes, tied = sizes_of(config), bool(config.get("tie_word_embeddings", row.tied))
    rows, width = sizes["vocabulary"], sizes["hidden"]
    blocks = tuple(f"{BLOCKS}.{index}" for index in range(sizes["blocks"]))
    parameters: dict[str, tuple[int, ...]] = {f"{EMBEDDING}.weight": (rows, width)}
    linears: dict[str, Linear] = {}
    for block in blocks:
        for part in row.parts:
            parameters |= {f"{block}.{name}": shape for name, shape in part_shapes(part, config, sizes)}
            if part.inn:
                linears[f"{block}.{part.path}"] = Linear(sizes[part.out], sizes[part.inn], has_bias(part, config))
    parameters[f"{NORM}.weight"] = (width,)
    head = f"{HEAD}.weight"
    parameters |= {} if tied else {head: (rows, width)}
    vocabulary = Vocabulary(EMBEDDING, HEAD, rows, width, tied)
    return ModelShapes(config["model_type"], parameters, linears, vocabulary, blocks, frozenset({*parameters, head}))


def part_shapes(part: Part, config: Config, sizes: dict[str, int]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(name, shape) of the parameters of one module."""
    out = sizes[part.out]
    yield f"{part.path}.weight", (out, sizes[part.inn]) if part.inn else (out,)
    if has_bias(part, config):
        yield f"{part.path}.bias", (out,)


def has_bias(part: Part, config: Config) -> bool:
    return bool(config.get(part.bias, False)) if isinstance(part.bias, str) else part.bias


def block_lists(config: Config) -> dict[str, list[Any]]:
    """The lists of a config with one entry per block, as transformers completes them."""
    row = find_architecture(config)
    if row is not None:
        return layer_lists(config, row)
    from compress.model.blocks import make_config

    full = make_config(config)
    lists = {name: getattr(full, name, None) for name in LAYER_LISTS}
    return {name: entries for name, entries in lists.items() if isinstance(entries, list)}


def sliding_window(config: Config) -> int | None:
    """The window of sliding attention in tokens: that of the config, or the default of its model type."""
    if "sliding_window" in config:
        return config["sliding_window"]  # type: ignore[no-any-return]
    row = find_architecture(config)
    if row is not None:
        return row.window
    from compress.model.blocks import make_config

    return getattr(make_config(config), "sliding_window", None)


def linear_shapes(config: Config) -> dict[str, tuple[int, int]]:
    """The shape (out_features, in_features) of every linear in the decoder blocks that is quantized, by its path."""
    shapes = model_shapes(config)
    family = find_family(shapes.model_type)
    return {
        name: (linear.out, linear.inn)
        for name, linear in shapes.linears.items()
        if family is None or not family.skips(name)
    }


def model_stages(config: Config) -> dict[str, list[tuple[str, ...]]]:
    """{name of a stage: the full paths of its linears, once per block and expert}. {} if stages must be traced.

    The name is the path of the first linear inside its block, without the number of an expert.
    """
    shapes = model_shapes(config)
    family = find_family(shapes.model_type)
    stages: dict[str, list[tuple[str, ...]]] = {}
    for block, modules in modules_by_block(shapes).items():
        for stage in family.stages_in(modules) if family else ():
            name = EXPERT.sub(".", stage.linears[0])
            stages.setdefault(name, []).append(tuple(f"{block}.{linear}" for linear in stage.linears))
    return stages


def modules_by_block(shapes: ModelShapes) -> dict[str, set[str]]:
    """{block: the modules in it that have parameters}, as paths inside the block."""
    modules: dict[str, set[str]] = {block: set() for block in shapes.blocks}
    depth = shapes.blocks[0].count(".") + 1 if shapes.blocks else 0
    for name in shapes.parameters:
        path = name.split(".")
        block = ".".join(path[:depth])
        if block in modules:
            modules[block].add(".".join(path[depth:-1]))
    return modules


def find_vocabulary(config: Config) -> Vocabulary:
    """The vocabulary matrices that a config.json describes."""
    return model_shapes(config).vocabulary


def parameter_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """The shape of every stored parameter, by name. A tied head is not stored."""
    return model_shapes(config).parameters
