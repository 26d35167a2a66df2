"""Hidden states between two blocks, stored in a file, so that a killed run can continue.

Reads and writes go through the page cache, which the kernel shrinks when memory is short. The process itself holds only
the micro-batch that it works on.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from compress.core.atomic import file_errors
from compress.core.errors import QCompressError

Shape = tuple[int, ...]


class Activations:
    """Micro-batches (batch, seq, hidden) in one file. The first one begins at byte `begin`.

    `activations[i]` reads a micro-batch; `activations[i] = x` writes it.
    """

    def __init__(self, path: Path, shapes: Sequence[Shape], dtype: torch.dtype = torch.float32, *, begin: int = 0):
        self.path, self.shapes, self.dtype = path, list(shapes), dtype
        sizes = [prod(shape) * dtype.itemsize for shape in shapes]
        self.offsets = [begin + sum(sizes[:i]) for i in range(len(sizes) + 1)]
        with file_errors(path):
            path.touch()

    def __len__(self) -> int:
        return len(self.shapes)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: int) -> Tensor:
        tensor = torch.empty(self.shapes[index], dtype=self.dtype)
        with self.path.open("rb") as file:
            file.seek(self.offsets[index])
            if file.readinto(raw_bytes(tensor)) != tensor.nbytes:  # type: ignore[attr-defined]
                raise QCompressError(
                    f"{self.path}: the file ends before micro-batch {index}; start over with --restart"
                )
        return tensor

    def __setitem__(self, index: int, tensor: Tensor) -> None:
        if tuple(tensor.shape) != tuple(self.shapes[index]):
            raise ValueError(
                f"micro-batch {index} has shape {tuple(tensor.shape)}, but the file needs {tuple(self.shapes[index])}"
            )
        with file_errors(self.path, "it continues from here"), self.path.open("r+b") as file:
            file.seek(self.offsets[index])
            file.write(raw_bytes(tensor.to("cpu", self.dtype).contiguous()))

    def append(self, tensor: Tensor) -> None:
        """Write a micro-batch of any shape after the last one."""
        self.shapes.append(tuple(tensor.shape))
        self.offsets.append(self.offsets[-1] + tensor.numel() * self.dtype.itemsize)
        self[len(self) - 1] = tensor

    def halves(self) -> "tuple[Activations, Activations]":
        """Two views of this file: the first and the second half of the micro-batches."""
        middle = len(self) // 2
        first = Activations(self.path, self.shapes[:middle], self.dtype, begin=self.offsets[0])
        return first, Activations(self.path, self.shapes[middle:], self.dtype, begin=self.offsets[middle])

    def sync(self) -> None:
        """Wait until all data is on disk."""
        with self.path.open("rb") as file:
            os.fsync(file.fileno())

    def digest(self) -> str:
        """The sha256 of the file, hexadecimal."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def check(self, digest: str) -> None:
        """Raise QCompressError if the file's digest differs from `digest`."""
        if self.digest() != digest:
            raise QCompressError(
                f"{self.path}: the file has changed since the interrupted run wrote it; start over with --restart"
            )


def raw_bytes(tensor: Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def block_inputs(folder: Path, index: int, shapes: Sequence[Shape], rank: int = 0) -> Activations:
    """The file with one process's inputs of block `index`. Blocks alternate between two files.

    So a block can read its inputs from one file while it writes its outputs to the other.
    """
    return Activations(folder / f"activations-{index % 2}-{rank}.bin", shapes)
