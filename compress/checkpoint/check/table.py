"""The modules of the model that config.json describes, and the layers into which vLLM fuses them."""

from dataclasses import dataclass
from typing import Any

from compress.core.errors import QCompressError
from compress.model.families import FUSED, find_family
from compress.model.shapes import Linear, model_shapes

ROW_PARALLEL = ("heads", "rows")  # a linear fed by another linear is cut along its inputs


@dataclass(frozen=True)
class Table:
    """The modules that config.json declares: `linears` of the blocks, `head` and `embedding`.

    `vocabulary` is the shape of head and embedding, and `parameters` has the shapes of all parameters. `state_names`
    are all names of the state dict. `fused` maps each fused layer of vLLM to its linears. Tensor parallelism splits
    `row_parallel` linears along their inputs. `block_names` are the paths of the decoder blocks.
    """

    linears: dict[str, Linear]
    head: str
    embedding: str
    vocabulary: Linear
    parameters: dict[str, tuple[int, ...]]
    state_names: frozenset[str]
    fused: dict[str, tuple[str, ...]]
    row_parallel: frozenset[str]
    block_names: tuple[str, ...] = ()


EMPTY_TABLE = Table({}, "lm_head", "embedding", Linear(0, 0), {}, frozenset(), {}, frozenset())


def make_table(config: dict[str, Any]) -> Table:
    """The table of a config.json. Raises QCompressError if transformers cannot build a causal LM from it."""
    try:
        shapes = model_shapes(config)
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        ImportError,
        RuntimeError,
        ArithmeticError,
        AssertionError,
    ) as problem:
        raise QCompressError(" ".join(str(problem).split())[:200]) from None
    linears, fused, row_parallel = shapes.linears, {}, set()
    family = find_family(shapes.model_type)
    for block in shapes.blocks:
        for name, shards in (family.fused if family else FUSED).items():
            full = tuple(f"{block}.{shard}" for shard in shards)
            if all(shard in linears for shard in full):
                fused[f"{block}.{name}"] = full
        for stage in family.stages if family else ():
            if stage.feeder and stage.feeder.kind in ROW_PARALLEL:
                row_parallel |= {f"{block}.{name}" for name in stage.linears}
    vocabulary = shapes.vocabulary
    return Table(
        linears,
        vocabulary.head,
        vocabulary.embedding,
        Linear(vocabulary.rows, vocabulary.width),
        shapes.parameters,
        shapes.state_names,
        fused,
        frozenset(row_parallel),
        shapes.blocks,
    )
