"""The modules of the model that config.json describes, and the layers into which vLLM fuses them.

The model's own code lists the modules on the meta device, so no weight is read.
"""

from dataclasses import dataclass
from typing import Any

from compress.core.errors import QCompressError
from compress.model.blocks import find_blocks, make_skeleton
from compress.model.families import FUSED, find_family, find_linears

ROW_PARALLEL = ("heads", "rows")  # a linear fed by another linear is cut along its inputs


@dataclass(frozen=True)
class Matrix:
    """A module that could be packed: its shape (out, inn), and whether the architecture has a bias."""

    out: int
    inn: int
    bias: bool = False


@dataclass(frozen=True)
class Table:
    """The modules that config.json declares: `linears` of the blocks, `head` and `embedding`.

    `vocabulary` is the shape of head and embedding, and `parameters` has the shapes of all parameters. `state_names`
    are all names of the state dict. `fused` maps each fused layer of vLLM to its linears. Tensor parallelism splits
    `row_parallel` linears along their inputs. `block_names` are the paths of the decoder blocks.
    """

    linears: dict[str, Matrix]
    head: str
    embedding: str
    vocabulary: Matrix
    parameters: dict[str, tuple[int, ...]]
    state_names: frozenset[str]
    fused: dict[str, tuple[str, ...]]
    row_parallel: frozenset[str]
    block_names: tuple[str, ...] = ()


EMPTY_TABLE = Table({}, "lm_head", "embedding", Matrix(0, 0), {}, frozenset(), {}, frozenset())


def make_table(config: dict[str, Any]) -> Table:
    """The table of a config.json. Raises QCompressError if transformers cannot build a causal LM from it."""
    try:
        model = make_skeleton(config)
        path, layers = find_blocks(model)
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
    names = {module: name for name, module in model.named_modules()}
    embedding = model.get_input_embeddings()
    parameters = {name: (*parameter.shape,) for name, parameter in model.named_parameters()}
    tied = set(getattr(model, "_tied_weights_keys", None) or ()) if model.config.tie_word_embeddings else set()
    linears, fused, row_parallel = {}, {}, set()
    family = find_family(model.config.model_type)
    for i, block in enumerate(layers):
        for name, linear in find_linears(block).items():
            linears[f"{path}.{i}.{name}"] = Matrix(linear.out_features, linear.in_features, linear.bias is not None)
        for name, shards in (family.fused if family else FUSED).items():
            full = tuple(f"{path}.{i}.{shard}" for shard in shards)
            if all(shard in linears for shard in full):
                fused[f"{path}.{i}.{name}"] = full
        for stage in family.stages if family else ():
            if stage.feeder and stage.feeder.kind in ROW_PARALLEL:
                row_parallel |= {f"{path}.{i}.{name}" for name in stage.linears}
    return Table(
        linears,
        names.get(model.get_output_embeddings(), "lm_head"),
        names[embedding],
        Matrix(*parameters[f"{names[embedding]}.weight"]),
        {name: shape for name, shape in parameters.items() if name not in tied},
        frozenset(model.state_dict()),
        fused,
        frozenset(row_parallel),
        tuple(f"{path}.{i}" for i in range(len(layers))),
    )
