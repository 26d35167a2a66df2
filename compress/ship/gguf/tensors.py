"""Every tensor of a .gguf file: its name, its ggml type, and its bytes as llama.cpp's converter would order them.

Rows of queries and keys are reordered for interleaved rotation, and norms of Gemma store their weight plus 1: the
opposite of what `checkpoint/gguf/tensors.py` undoes.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compress.checkpoint.formats import format_of, quantized_weight
from compress.checkpoint.gguf.architectures import Architecture
from compress.checkpoint.gguf.tensors import gguf_names
from compress.checkpoint.read import Checkpoint
from compress.checkpoint.schemes import kind
from compress.core.errors import BadValueError
from compress.core.grid import QuantizedWeight
from compress.ship.gguf.encode import BLOCKS, TYPES, block_type, check_rows, encode, encode_plain, plain_bytes
from compress.ship.gguf.settings import EMBEDDING_TYPES


@dataclass(frozen=True)
class OutputTensor:
    """A tensor to write: `parameter` is its name in the checkpoint, `shape` its shape in torch's order.

    If it is not `exact`, the type rounds the weight.
    """

    name: str
    parameter: str
    shape: tuple[int, ...]
    type: str
    exact: bool = True

    @property
    def bytes(self) -> int:
        """The number of bytes of the tensor's data."""
        weights, size = BLOCKS[self.type]
        return int(np.prod(self.shape)) // weights * size


@dataclass(frozen=True)
class GgufSource:
    """A checkpoint as the source of a .gguf file, with the architecture's rules."""

    checkpoint: Checkpoint
    config: Any
    prefix: str
    architecture: Architecture

    def is_packed(self, parameter: str) -> bool:
        """Whether the checkpoint stores this parameter as codes."""
        row = format_of(self.checkpoint)
        return row is not None and f"{parameter.removesuffix('.weight')}.{row.packed}" in self.checkpoint.tensors

    def packed(self, parameter: str) -> QuantizedWeight:
        """Codes, scales and zeros of a parameter, with its rows in the order of the file."""
        module = parameter.removesuffix(".weight")
        weight = quantized_weight(self.checkpoint, module)
        order = self.order(parameter, len(weight.codes))
        if order is None:
            return weight
        return replace(weight, **{name: getattr(weight, name)[order] for name in ("codes", "scales", "zeros")})

    def order(self, parameter: str, rows: int) -> Tensor | None:
        """The parameter's row for each row of the file, or None if both have the same order."""
        heads = {".q_proj.": self.config.num_attention_heads, ".k_proj.": self.config.num_key_value_heads}
        count = next((count for part, count in heads.items() if part in parameter), None)
        if count is None or not self.architecture.interleaved:
            return None
        return torch.arange(rows).reshape(count, 2, rows // count // 2).swapaxes(1, 2).reshape(-1)

    def plain(self, parameter: str) -> Tensor:
        """An unquantized parameter as the file stores it."""
        value = self.checkpoint.tensor(parameter)
        order = self.order(parameter, len(value))
        value = value if order is None else value[order]
        if parameter.endswith("norm.weight") and self.architecture.offset:
            return value.float() + self.architecture.offset
        return value.float() if value.ndim == 1 else value


def output_tensors(
    source: GgufSource, shapes: dict[str, tuple[int, ...]], embedding: str = "f16", *, allow_error: bool = False
) -> Iterator[OutputTensor]:
    """The tensors of the file for the model's parameters. `embedding` is a key of EMBEDDING_TYPES.

    Raises ValueError if one cannot be stored exactly. With `allow_error`, only one that no type can store is an error.
    """
    names = gguf_names(source.prefix, source.config.num_hidden_layers, list(shapes))
    for parameter, shape in shapes.items():
        rounded = EMBEDDING_TYPES[embedding] if kind(parameter.removesuffix(".weight")) != "linear" else None
        try:
            if source.is_packed(parameter):
                type_, exact = block_type(source.packed(parameter), allow_error=allow_error)
            elif rounded and len(shape) == 2:
                check_rows(shape[1], rounded)
                type_, exact = rounded, False
            else:
                type_, exact = "F32" if len(shape) == 1 else TYPES[source.checkpoint.tensors[parameter].dtype], True
        except ValueError as error:
            raise BadValueError(f"{parameter}: {error}") from None
        yield OutputTensor(names[parameter], parameter, shape, type_, exact)


def tensor_bytes(source: GgufSource, tensor: OutputTensor) -> np.ndarray:
    """The bytes of a tensor, as uint8 (rows, bytes per row)."""
    if source.is_packed(tensor.parameter):
        return encode(source.packed(tensor.parameter), tensor.type)
    plain = source.plain(tensor.parameter)
    return plain_bytes(plain) if tensor.exact else encode_plain(plain, tensor.type)
