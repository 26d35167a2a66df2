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

from compress.checkpoint.formats import Format, format_of, quantized_weight
from compress.checkpoint.gguf.architectures import Architecture
from compress.checkpoint.gguf.tensors import gguf_names
from compress.checkpoint.read import Checkpoint
from compress.core.errors import BadValueError
from compress.core.grid import QuantizedWeight
from compress.ship.gguf.encode import BYTES, TYPES, block_type, encode, plain_bytes


@dataclass(frozen=True)
class OutputTensor:
    """A tensor to write: `parameter` is its name in the checkpoint, `shape` its shape in torch's order."""

    name: str
    parameter: str
    shape: tuple[int, ...]
    type: str

    @property
    def bytes(self) -> int:
        """The number of bytes of the tensor's data."""
        sizes = {"F32": 4, "F16": 2, "BF16": 2}
        count = int(np.prod(self.shape))
        return count * sizes[self.type] if self.type in sizes else count // 32 * BYTES[self.type]


@dataclass(frozen=True)
class GgufSource:
    """A checkpoint as the source of a .gguf file, with the architecture's rules."""

    checkpoint: Checkpoint
    config: Any
    prefix: str
    architecture: Architecture

    @property
    def format(self) -> Format:
        row = format_of(self.checkpoint)
        assert row is not None
        return row

    def is_packed(self, parameter: str) -> bool:
        """Whether the checkpoint stores this parameter as codes."""
        return (
            self.checkpoint.quantization is not None
            and f"{parameter.removesuffix('.weight')}.{self.format.packed}" in self.checkpoint.tensors
        )

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


def output_tensors(source: GgufSource, shapes: dict[str, tuple[int, ...]]) -> Iterator[OutputTensor]:
    """The tensors of the file for the model's parameters. Raises ValueError if one cannot be stored exactly."""
    names = gguf_names(source.prefix, source.config.num_hidden_layers, list(shapes))
    for parameter, shape in shapes.items():
        if source.is_packed(parameter):
            yield OutputTensor(names[parameter], parameter, shape, packed_type(source, parameter))
        elif len(shape) == 1:
            yield OutputTensor(names[parameter], parameter, shape, "F32")
        else:
            yield OutputTensor(names[parameter], parameter, shape, TYPES[source.checkpoint.tensors[parameter].dtype])


def packed_type(source: GgufSource, parameter: str) -> str:
    """The ggml type of a packed parameter. Raises ValueError with its name if there is none."""
    try:
        return block_type(source.packed(parameter))
    except ValueError as error:
        raise BadValueError(f"{parameter}: {error}") from None


def tensor_bytes(source: GgufSource, tensor: OutputTensor) -> np.ndarray:
    """The bytes of a tensor, as uint8 (rows, bytes per row)."""
    if source.is_packed(tensor.parameter):
        return encode(source.packed(tensor.parameter), tensor.type)
    return plain_bytes(source.plain(tensor.parameter))
