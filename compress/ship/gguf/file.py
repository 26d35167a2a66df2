"""Write a .gguf file with the gguf package: header first, then one tensor at a time."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from compress.ship.gguf.metadata import Exported, Metadata
from compress.ship.gguf.tensors import GgufSource, OutputTensor, tensor_bytes

ALIGNMENT = 32  # bytes; each tensor begins at a multiple of it


@contextmanager
def open_file(
    file: Path, prefix: str, values: Metadata, exported: Exported, tensors: list[OutputTensor]
) -> Iterator[Any]:
    """Write the header of a new file, with metadata and the table of tensors. Yields the writer of the gguf package."""
    from gguf import GGMLQuantizationType, GGUFWriter

    writer = GGUFWriter(file, prefix)
    try:
        for key, value in values.items():
            add_value(writer, key, value)
        for name, factors in exported.tensors.items():
            writer.add_tensor_info(name, factors.shape, factors.dtype, factors.nbytes)
        for tensor in tensors:
            rows = (*tensor.shape[:-1], tensor.bytes // int(np.prod(tensor.shape[:-1])))
            kind = GGMLQuantizationType[tensor.type]
            writer.add_tensor_info(tensor.name, rows, np.dtype(np.uint8), tensor.bytes, kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        yield writer
    finally:
        writer.close()


def add_value(writer: Any, key: str, value: Any) -> None:
    """Add a metadata value in the ggml type that llama.cpp expects for its Python type."""
    adders = {bool: "add_bool", int: "add_uint32", float: "add_float32", str: "add_string", list: "add_array"}
    getattr(writer, adders[type(value)])(key, value)


def total_bytes(writer: Any, exported: Exported, tensors: list[OutputTensor]) -> int:
    """The size that the file of an opened writer will have with all tensors."""
    header = max(stream.tell() for stream in writer.fout)
    sizes = [header, *(factors.nbytes for factors in exported.tensors.values()), *(one.bytes for one in tensors)]
    return sum(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes)


def write_tensors(writer: Any, exported: Exported, source: GgufSource, tensors: list[OutputTensor]) -> None:
    """Write all tensors, one in memory at a time, and flush the file to the disk."""
    for factors in exported.tensors.values():
        writer.write_tensor_data(factors)
    for tensor in tensors:
        writer.write_tensor_data(tensor_bytes(source, tensor))
    writer.flush()
    for stream in writer.fout:
        os.fsync(stream.fileno())
