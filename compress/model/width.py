"""Width pruning: choose the channels and heads to keep, and slice the parameters.

Importance is measured on text (`importance.py`), or computed from the weights:

    hidden channel   sum of squares of its embedding column and of its rows in o_proj and down_proj
    MLP channel      ‖gate row‖ · ‖up row‖ · ‖down column‖
    query head       ‖q rows‖ · ‖o columns‖
    KV head          ‖k rows‖ · ‖v rows‖ · √Σ (importance of its query heads)²

A query head stays with the KV head that it uses. The same hidden channels are kept everywhere, because all blocks share
one residual stream. MLP channels and heads are chosen per block.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import sqrt
from typing import Protocol

import torch
from torch import Tensor

from compress.core.errors import BadValueError
from compress.model.blocks import Weights
from compress.model.shapes import Shape

Parts = tuple[str | None, ...]  # the units along one axis, in order; an axis with None is never sliced
NORM: tuple[Parts, ...] = (("hidden",),)
AXES: dict[str, tuple[Parts, ...]] = {
    "embed_tokens": ((None,), ("hidden",)),
    "lm_head": ((None,), ("hidden",)),
    "q_proj": (("query",), ("hidden",)),
    "k_proj": (("kv",), ("hidden",)),
    "v_proj": (("kv",), ("hidden",)),
    "qkv_proj": (("query", "kv", "kv"), ("hidden",)),
    "o_proj": (("hidden",), ("query",)),
    "gate_proj": (("mlp",), ("hidden",)),
    "up_proj": (("mlp",), ("hidden",)),
    "gate_up_proj": (("mlp", "mlp"), ("hidden",)),
    "down_proj": (("hidden",), ("mlp",)),
    "q_norm": ((None,),),
    "k_norm": ((None,),),
    "input_layernorm": NORM,
    "post_attention_layernorm": NORM,
    "pre_feedforward_layernorm": NORM,
    "post_feedforward_layernorm": NORM,
    "norm": NORM,
}


@dataclass(frozen=True)
class BlockImportance:
    """Importance in one block: `mlp` (intermediate_size,), `query` (num_heads,), `kv` (num_kv_heads,)."""

    mlp: Tensor
    query: Tensor
    kv: Tensor


class Importance(Protocol):
    """Importance of channels: `hidden()` (hidden_size,) for the whole model, `block(i)` for one block."""

    def hidden(self) -> Tensor: ...

    def block(self, index: int) -> BlockImportance: ...


def narrow(
    names: Sequence[str],
    path: str,
    weights: Weights,
    teacher: Shape,
    shape: Shape,
    importance: Importance | None = None,
) -> Weights:
    """A function that returns the student's parameters: slices of `weights`, cut from width `teacher` to `shape`.

    `names` are the names of all parameters. Without `importance`, importance is computed from the weights.
    Raises ValueError if a parameter's module is not in AXES.
    """
    for name in names:
        axes_of(name)
    sizes = unit_sizes(teacher)
    source = importance or WeightImportance(names, path, weights, teacher)

    @cache
    def hidden() -> Tensor:
        return largest(source.hidden(), shape.hidden_size)

    @cache
    def of_block(index: int) -> dict[str, Tensor]:
        return block_units(source.block(index), teacher, shape)

    def units(unit: str, name: str) -> Tensor:
        return hidden() if unit == "hidden" else of_block(block_index(name, path))[unit]

    def read(name: str) -> Tensor:
        tensor = weights(name)
        for axis, parts in enumerate(axes_of(name)[: tensor.dim()]):
            if None not in parts:
                index = [units(p, name) + start for p, start in zip(parts, starts(parts, sizes), strict=True)]  # type: ignore[arg-type]
                tensor = tensor.index_select(axis, torch.cat(index))
        return rescale(name, tensor, teacher.head_dim, shape.head_dim)

    return read


def axes_of(name: str) -> tuple[Parts, ...]:
    """The row of AXES for a parameter. A bias or norm uses only its first axis.

    Raises ValueError if the parameter's module is not in AXES.
    """
    module = name.split(".")[-2]
    if module not in AXES:
        raise BadValueError(f"{name}: width pruning does not support this module; remove blocks instead (num_layers)")
    return AXES[module]


def unit_sizes(shape: Shape) -> dict[str, int]:
    """The length in channels of the axis of each unit: "hidden", "mlp", "query" and "kv"."""
    return {
        "hidden": shape.hidden_size,
        "mlp": shape.intermediate_size,
        "query": shape.num_heads * shape.head_dim,
        "kv": shape.num_kv_heads * shape.head_dim,
    }


def block_index(name: str, path: str) -> int:
    """The block number of a parameter: 3 for "model.layers.3.mlp.up_proj.weight"."""
    return int(name.removeprefix(f"{path}.").partition(".")[0])


def starts(parts: Parts, sizes: dict[str, int]) -> list[int]:
    """The first channel of each part of a fused axis."""
    return [sum(sizes[str(p)] for p in parts[:i]) for i in range(len(parts))]


def largest(importance: Tensor, count: int) -> Tensor:
    """The indices of the `count` largest values, in ascending order. Of equal values, the first ones are taken."""
    return importance.argsort(descending=True, stable=True)[:count].sort().values


@dataclass(frozen=True)
class WeightImportance:
    """Importance computed from the weights. The weights of a block are read when its importance is requested."""

    names: Sequence[str]
    path: str
    weights: Weights
    shape: Shape

    def hidden(self) -> Tensor:
        """For each hidden channel, (hidden,): the sum of squares of the weights that write to it."""
        total: Tensor | None = None
        for name in self.names:
            axes = axes_of(name)
            writes = len(axes) == 2 and name.endswith(".weight") and (axes[0] == ("hidden",) or "embed_tokens" in name)
            if writes:
                energy = self.weights(name).float().square().sum(1 if axes[0] == ("hidden",) else 0)
                total = energy if total is None else total + energy
        if total is None:
            raise BadValueError(f"model.width: none of the {len(self.names)} parameters writes to the residual stream")
        return total

    def block(self, index: int) -> BlockImportance:
        local = [name for name in self.names if name.startswith(f"{self.path}.{index}.")]
        sizes, width = unit_sizes(self.shape), self.shape.head_dim
        query = unit_norms(local, self.weights, sizes, "query", width)
        groups = query.view(self.shape.num_kv_heads, self.shape.group).square().sum(1).sqrt()
        kv = unit_norms(local, self.weights, sizes, "kv", width) * groups
        return BlockImportance(mlp=unit_norms(local, self.weights, sizes, "mlp", 1), query=query, kv=kv)


def block_units(importance: BlockImportance, teacher: Shape, shape: Shape) -> dict[str, Tensor]:
    """The indices of the channels to keep in one block, by unit. Kept query heads belong to kept KV heads."""
    query = importance.query.view(teacher.num_kv_heads, teacher.group)
    groups = largest(importance.kv, shape.num_kv_heads)
    heads = torch.cat([g * teacher.group + largest(query[g], shape.group) for g in groups])
    channels = head_channels(teacher.head_dim, shape.head_dim)

    def spread(chosen: Tensor) -> Tensor:
        return (chosen[:, None] * teacher.head_dim + channels).flatten()

    mlp = largest(importance.mlp, shape.intermediate_size)
    return {"mlp": mlp, "query": spread(heads), "kv": spread(groups)}


def unit_norms(names: Sequence[str], weights: Weights, sizes: dict[str, int], unit: str, width: int) -> Tensor:
    """The importance of each head or channel of a unit: the product of its norms in all matrices with this unit.

    A head or channel has `width` rows or columns in each of these matrices.
    """
    norms = torch.ones(sizes[unit] // width)
    for name in names:
        for axis, parts in enumerate(axes_of(name)):
            for part, start in zip(parts, starts(parts, sizes) if unit in parts else (), strict=False):
                if part == unit and name.endswith(".weight"):
                    piece = weights(name).narrow(axis, start, sizes[unit]).float()
                    norms *= piece.square().sum(1 - axis).view(-1, width).sum(1).sqrt()
    return norms


def head_channels(teacher: int, student: int) -> Tensor:
    """The channels of a teacher's head, of width `teacher`, that become a head of width `student`: (student,) indices.

    Rotary pair i of a head of width d turns with the frequency θ^(-2i/d). Each pair of the student's head is the
    teacher's pair with the nearest frequency. If the student's head is wider, some pairs occur twice; `rescale` divides
    their weights.
    """
    pairs = (torch.arange(student // 2) * teacher / student).round().long().clamp(max=teacher // 2 - 1)
    return torch.cat([pairs, pairs + teacher // 2])


def rescale(name: str, tensor: Tensor, teacher: int, student: int) -> Tensor:
    """Rescale a head's weights after channels were repeated or dropped: q·k/√d and the output keep their magnitude."""
    module = name.split(".")[-2]
    if teacher == student or module not in ("q_proj", "k_proj", "v_proj", "o_proj"):
        return tensor
    channels = head_channels(teacher, student)
    scale = channels.bincount(minlength=teacher)[channels].float().rsqrt()
    if module == "q_proj":
        scale = scale * sqrt(student / teacher)
    if module == "o_proj":
        return tensor if name.endswith(".bias") else (tensor.float().unflatten(1, (-1, student)) * scale).flatten(1)
    shape = (-1, student, *tensor.shape[1:])
    return (tensor.float().view(shape) * scale.view(student, *[1] * (tensor.dim() - 1))).flatten(0, 1)
