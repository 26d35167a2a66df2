"""Stored tensors as NumPy arrays, for checks without torch. A bfloat16 tensor is read as its bits, in uint16."""

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.checkpoint.read import Checkpoint, TensorInfo
from compress.core.dtypes import Dtype
from compress.core.errors import QCompressError

Array = NDArray[Any]
RAW = {
    Dtype.bfloat16: "uint16",
    Dtype.float8_e4m3fn: "uint8",
    Dtype.float8_e5m2: "uint8",
    Dtype.float8_e8m0fnu: "uint8",
}
NOT_FINITE: dict[
    Dtype, np.unsignedinteger[Any]
] = {  # bits that are all set in NaN, and in infinity where the dtype has one
    Dtype.float64: np.uint64(0x7FF0000000000000),
    Dtype.float32: np.uint32(0x7F800000),
    Dtype.float16: np.uint16(0x7C00),
    Dtype.bfloat16: np.uint16(0x7F80),
    Dtype.float8_e4m3fn: np.uint8(0x7F),
    Dtype.float8_e5m2: np.uint8(0x7C),
    Dtype.float8_e8m0fnu: np.uint8(0xFF),
}
CHUNK = 2**19  # bytes that are read at a time, so that they stay in the cache


def read_array(checkpoint: Checkpoint, name: str) -> Array:
    """The tensor as stored, or as `checkpoint` replaces it.

    Raises QCompressError if no tensor has this name, or its file ends too early.
    """
    if name not in checkpoint.tensors:
        raise QCompressError(f"{checkpoint.path}: no tensor {name}; fetch the checkpoint again")
    info = checkpoint.tensors[name]
    data = tensor_data(checkpoint, name) if name in checkpoint.replaced else read_data(name, info)
    return data.view(RAW.get(info.dtype, info.dtype.value)).reshape(info.shape)


def tensor_data(checkpoint: Checkpoint, name: str) -> NDArray[np.uint8]:
    """The bytes of the tensor that `checkpoint.tensor` returns."""
    import torch

    data: NDArray[np.uint8] = checkpoint.tensor(name).contiguous().reshape(-1).view(torch.uint8).numpy()
    return data


def read_data(name: str, info: TensorInfo) -> NDArray[np.uint8]:
    """The bytes of a tensor. Raises QCompressError if its file ends too early."""
    data = np.fromfile(info.file, np.uint8, info.bytes, offset=info.offset)
    if len(data) != info.bytes:
        raise short_file(name, info, len(data))
    return data


def stored_digest(name: str, info: TensorInfo) -> str:
    """sha256 of a tensor's bytes, hexadecimal: `record.tensor_digest` of the stored tensor."""
    digest = hashlib.sha256()
    for part in chunks(name, info, np.dtype(np.uint8)):
        digest.update(part.data)
    return digest.hexdigest()


def as_float32(array: Array, dtype: Dtype) -> NDArray[np.float32]:
    """The numbers of a float tensor that `read_array` returned."""
    if dtype == Dtype.bfloat16:
        return (array.astype(np.uint32) * np.uint32(2**16)).view(np.float32)
    return array.astype(np.float32)


def chunks(name: str, info: TensorInfo, kind: "np.dtype[Any]") -> Iterator[Array]:
    """The bytes of a tensor as numbers of a `kind`, CHUNK bytes at a time. Raises QCompressError like `read_data`."""
    with info.file.open("rb") as file:
        file.seek(info.offset)
        for start in range(0, info.bytes, CHUNK):
            size = min(CHUNK, info.bytes - start)
            part = np.fromfile(file, kind, size // kind.itemsize)
            if part.nbytes != size:
                raise short_file(name, info, start + part.nbytes)
            yield part


def short_file(name: str, info: TensorInfo, size: int) -> QCompressError:
    """The error for a file that ends before the tensor does."""
    return QCompressError(f"{info.file}: {name} has {size} of {info.bytes} bytes; fetch the file again")


def all_finite(name: str, info: TensorInfo) -> bool:
    """Whether no value of a float tensor is NaN or infinite."""
    mask = NOT_FINITE[info.dtype]
    return not any(((part & mask) == mask).any() for part in chunks(name, info, mask.dtype))


def all_zero(name: str, info: TensorInfo) -> bool:
    """Whether every value of a float tensor is 0 or -0."""
    kind = NOT_FINITE[info.dtype].dtype
    sign = kind.type(2 ** (8 * info.dtype.itemsize - 1))
    return not any((part & ~sign).any() for part in chunks(name, info, kind))
