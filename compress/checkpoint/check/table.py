"""The modules of the model that config.json describes, and the layers into which vLLM fuses them."""

from dataclasses import dataclass, field
from typing import Any

from compress.core.errors import QCompressError
from compress.model.families import FUSED, Family, Stage, find_family, is_row_parallel
from compress.model.shapes import Linear, model_shapes, modules_by_block

UNKNOWN = Family((), (), FUSED)  # what an unknown model type probably fuses


@dataclass(frozen=True)
class Table:
    """The modules that config.json declares: `linears` of the blocks, `head` and `embedding`.

    `vocabulary` is the shape of head and embedding, and `parameters` has the shapes of all parameters. `state_names`
    are all names of the state dict. `fused` maps each fused layer of vLLM to its linears. Tensor parallelism splits
    `row_parallel` linears along their inputs. `stages` has the stages of each decoder block by its path; () if they are
    unknown. `stacked` is True if there are experts whose names in files are unknown.
    """

    linears: dict[str, Linear]
    head: str
    embedding: str
    vocabulary: Linear
    parameters: dict[str, tuple[int, ...]]
    state_names: frozenset[str]
    fused: dict[str, tuple[str, ...]]
    row_parallel: frozenset[str]
    stages: dict[str, tuple[Stage, ...]] = field(default_factory=dict)
    stacked: bool = False

    @property
    def block_names(self) -> tuple[str, ...]:
        return tuple(self.stages)


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
    family = find_family(shapes.model_type)
    row_parallel = [name for name in shapes.linears if family and is_row_parallel(name)]
    fused, stages = {}, {}
    for block, modules in modules_by_block(shapes).items():
        for name, shards in (family or UNKNOWN).fused_in(modules):
            fused[f"{block}.{name}"] = tuple(f"{block}.{shard}" for shard in shards)
        stages[block] = family.stages_in(modules) if family else ()
    vocabulary = shapes.vocabulary
    return Table(
        shapes.linears,
        vocabulary.head,
        vocabulary.embedding,
        Linear(vocabulary.rows, vocabulary.width),
        shapes.parameters,
        shapes.state_names,
        fused,
        frozenset(row_parallel),
        stages,
        shapes.stacked,
    )
