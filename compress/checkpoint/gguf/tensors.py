"""Match each parameter of the model with one tensor of the file. No tensor may be left over.

gguf's table gives the names. llama.cpp's converters change some values, and this module undoes the changes. Rows of
queries and keys are reordered for interleaved rotation. Norms of Gemma and Nemotron are stored as their weight plus 1.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from compress.checkpoint.finite import cast_finite
from compress.checkpoint.gguf.reader import GgufTensor
from compress.checkpoint.gguf.shards import GgufModel

ROPE_FACTORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
CHUNK = 2**24  # values that are dequantized at a time: 64 MiB in float32


@dataclass(frozen=True)
class Parameter:
    """A parameter of the model: its name and shape, the tensor that stores it, and how to undo the conversion.

    `heads` is the number of heads if the rows of each head are interleaved. `offset` is the number that the file adds
    to each value. `rows` and `columns` are the stored indices of the rows and columns, or None if they are in order.
    With `logarithm`, the file stores -exp(value).
    """

    name: str
    shape: tuple[int, ...]
    tensor: GgufTensor
    heads: int | None = None
    offset: float = 0.0
    rows: np.ndarray | None = None
    columns: np.ndarray | None = None
    logarithm: bool = False

    @property
    def order(self) -> np.ndarray | None:
        """The index of the stored row for each row of the parameter; None if the rows are in order."""
        if self.heads is None:
            return self.rows
        rows = self.tensor.shape[0]
        return np.arange(rows).reshape(self.heads, rows // self.heads // 2, 2).swapaxes(1, 2).reshape(-1)

    def read(self, dtype: torch.dtype) -> Tensor:
        """The values in `dtype`. Raises QCompressError if a value is not finite or overflows `dtype`."""
        parts = [cast_finite(self.label, torch.from_numpy(part), dtype) for part in self.parts()]
        return torch.cat(parts).reshape(self.shape)

    @property
    def label(self) -> str:
        return f"{self.tensor.file}: {self.tensor.name}"

    def parts(self) -> Iterator[np.ndarray]:
        """The float32 values in the order of the parameter, at most CHUNK of them at a time."""
        order, vector = self.order, len(self.tensor.shape) == 1
        if vector:
            values = dequantize_rows(self.tensor, slice(0, 1))[0]
            values = (values if order is None else values[order]) - np.float32(self.offset)
            yield np.log(-values) if self.logarithm else values
            return
        step = max(1, CHUNK // self.tensor.shape[-1])
        for start in range(0, self.tensor.rows, step):
            rows = slice(start, start + step) if order is None else order[start : start + step]
            values = dequantize_rows(self.tensor, rows) - np.float32(self.offset)
            yield values if self.columns is None else np.ascontiguousarray(values[:, self.columns])


def dequantize_rows(tensor: GgufTensor, rows: slice | np.ndarray) -> np.ndarray:
    """Some rows of a tensor as float32 (rows, columns), dequantized by the gguf package."""
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    return dequantize(np.ascontiguousarray(tensor.data[rows]), GGMLQuantizationType(tensor.type))


@cache
def can_dequantize(kind: int) -> bool:
    """Whether the gguf package converts a ggml type to float32."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize

    one = GGMLQuantizationType(kind)
    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[one][1]), np.uint8), one)
    except NotImplementedError:
        return False
    return True


def type_name(tensor: GgufTensor) -> str:
    from gguf.constants import GGMLQuantizationType

    return GGMLQuantizationType(tensor.type).name


def gguf_names(architecture: str, blocks: int, names: list[str]) -> dict[str, str]:
    """{parameter of the model: its tensor's name in a .gguf file}, from the gguf package's table."""
    from gguf.constants import MODEL_ARCH_NAMES
    from gguf.tensor_mapping import get_tensor_name_map

    table = get_tensor_name_map({name: arch for arch, name in MODEL_ARCH_NAMES.items()}[architecture], blocks)
    suffixes = (".weight", ".bias")
    mapped = {name: table.get_name(name.replace(".dt_bias", ".dt_proj.bias"), try_suffixes=suffixes) for name in names}
    unnamed = [name for name, gguf_name in mapped.items() if gguf_name is None]
    if unnamed:
        raise ValueError(f"{architecture}: gguf's table has no name for {unnamed[0]}; install a newer gguf package")
    return {name: str(gguf_name) for name, gguf_name in mapped.items()}


def match_tensors(model: GgufModel, names: dict[str, str], shapes: dict[str, tuple[int, ...]]) -> dict[str, GgufTensor]:
    """{parameter of the model: its tensor}. rope.py reads the tensors in ROPE_FACTORS, which have no parameter.

    Raises QCompressError if a tensor is missing, left over, or of another shape or type. ggml leaves out sizes of 1, so
    they do not count.
    """
    missing = sorted(set(names.values()) - model.tensors.keys())
    surplus = sorted(model.tensors.keys() - set(names.values()) - set(ROPE_FACTORS))
    if missing:
        raise model.fail(f"lacks the tensor {missing[0]}" + and_more(missing))
    if surplus:
        text = f"has the tensor {surplus[0]}{and_more(surplus)}, which the model does not have"
        raise model.fail(text, "import another model")
    matched = {name: model.tensors[gguf_name] for name, gguf_name in names.items()}
    for name, tensor in matched.items():
        if squeezed(tensor.shape) != squeezed(shapes[name]):
            raise model.fail(f"{tensor.name} has shape {tensor.shape}, but its metadata gives {shapes[name]}")
        if not can_dequantize(tensor.type):
            text = f"{tensor.name} has the ggml type {type_name(tensor)}, which the gguf package cannot dequantize"
            raise model.fail(text, "import a file of another type")
    return matched


def squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def and_more(names: list[str]) -> str:
    """The end of a list in an error line: how many of `names` follow after the first."""
    return f" and {len(names) - 1} more" if len(names) > 1 else ""
