"""Tensor parallelism: each of several GPUs gets a slice of every linear, made of whole groups and words.

Linears in ROW_PARALLEL are cut along their inputs, all others along their outputs. If no group size divides the inputs
of an MLP's slices, zeros are added to the MLP.
"""

from typing import Any

from compress.checkpoint.padding import SIZE, pad_mlp
from compress.checkpoint.read import Checkpoint
from compress.core.config import GROUP_SIZES, QuantizeConfig
from compress.core.errors import QCompressError
from compress.model.families import find_family, is_row_parallel
from compress.model.shapes import linear_shapes

Linears = dict[str, tuple[int, int]]
WORD = 8  # 4-bit codes per word


def legal_group_sizes(linears: Linears, ranks: int = 1) -> list[int]:
    """The group sizes that divide the inputs of every linear on each of `ranks` GPUs, largest first."""
    return [size for size in GROUP_SIZES if all(divides(size, name, inn, ranks) for name, (_, inn) in linears.items())]


def divides(size: int, name: str, inn: int, ranks: int) -> bool:
    """Whether the inputs of a linear on one GPU are whole groups of `size`."""
    return inn % (size * ranks if is_row_parallel(name) else size) == 0


def check_ranks(where: str, config: dict[str, Any], linears: Linears, ranks: int) -> None:
    """Raises QCompressError if heads or outputs cannot be divided over `ranks` GPUs, which no padding cures."""
    option = f"--tensor-parallel-size {ranks}"
    heads = config.get("num_attention_heads") or 1
    kv_heads = config.get("num_key_value_heads") or heads
    if heads % ranks or (kv_heads % ranks and ranks % kv_heads):
        raise QCompressError(
            f"{where}: {option}: {heads} heads and {kv_heads} key-value heads do not divide; use fewer"
        )
    for name, (out, _) in linears.items():
        replicated = kv_heads < ranks and name.endswith((".k_proj", ".v_proj"))
        if out % (ranks * WORD) and not replicated and not is_row_parallel(name):
            raise QCompressError(
                f"{where}: {name}: {option}: {out} outputs do not divide into words of {WORD}; use fewer"
            )


def pad_for_ranks(checkpoint: Checkpoint, config: QuantizeConfig) -> Checkpoint:
    """The checkpoint, with padded MLPs if no group size would be legal without padding. It is not padded otherwise."""
    model, ranks = checkpoint.config, config.tensor_parallel_size
    family = find_family(str(model.get("model_type")))
    linears = linear_shapes(model)
    legal, sizes = legal_group_sizes(linears, ranks), [config.group_size] if config.group_size else list(GROUP_SIZES)
    intermediate = model.get(SIZE)
    if ranks == 1 or set(sizes) & set(legal) or not family or family.experts or not isinstance(intermediate, int):
        return checkpoint
    others = {name: shape for name, shape in linears.items() if ".mlp." not in name}
    mlp = {name: shape for name, shape in linears.items() if name.endswith(".mlp.down_proj")}
    size = next((size for size in sizes if size in legal_group_sizes(others, ranks)), None)
    if size is None or not mlp or any(inn != intermediate for _, inn in mlp.values()) or checkpoint.carried:
        return checkpoint
    return pad_mlp(checkpoint, -(-intermediate // (size * ranks)) * size * ranks)


def padding_of(checkpoint: Checkpoint) -> tuple[int, int] | None:
    """(intermediate size in the files, intermediate size with zeros) of a padded checkpoint. None without padding."""
    stored = checkpoint.stored_config.get(SIZE)
    size = checkpoint.config.get(SIZE)
    return (stored, size) if isinstance(stored, int) and isinstance(size, int) and size > stored else None
