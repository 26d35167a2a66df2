"""The hidden states between two blocks, in a file: one micro-batch in memory at a time, and all of them after a kill.

HiddenStates and writing go through the page cache, which the kernel gives back when memory is short: so what is kept in
memory follows the machine, and the process itself never holds more than what it works on.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from compress.core.errors import QCompressError

Shape = tuple[int, ...]


class Activations:
    """Micro-batches (batch, seq, hidden) in one file, the first at byte `begin`: `store[i]` reads one, `store[i] = x`
    writes it."""

    def __init__(self, path: Path, shapes: Sequence[Shape], dtype: torch.dtype = torch.float32, *, begin: int = 0):
        self.path, self.shapes, self.dtype = path, list(shapes), dtype
        sizes = [prod(shape) * dtype.itemsize for shape in shapes]
        self.offsets = [begin + sum(sizes[:i]) for i in range(len(sizes) + 1)]
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
                raise QCompressError(f"{self.path}: ends before micro-batch {index}; begin anew with --restart")
        return tensor

    def __setitem__(self, index: int, tensor: Tensor) -> None:
        if tuple(tensor.shape) != tuple(self.shapes[index]):
            raise ValueError(f"micro-batch {index} is {tuple(tensor.shape)}, planned {tuple(self.shapes[index])}")
        with self.path.open("r+b") as file:
            file.seek(self.offsets[index])
            file.write(raw_bytes(tensor.to("cpu", self.dtype).contiguous()))

    def append(self, tensor: Tensor) -> None:
        """One more micro-batch, of any shape."""
        self.shapes.append(tuple(tensor.shape))
        self.offsets.append(self.offsets[-1] + tensor.numel() * self.dtype.itemsize)
        self[len(self) - 1] = tensor

    def halves(self) -> "tuple[Activations, Activations]":
        """The first and the second half of the micro-batches, in the same file."""
        middle = len(self) // 2
        first = Activations(self.path, self.shapes[:middle], self.dtype, begin=self.offsets[0])
        return first, Activations(self.path, self.shapes[middle:], self.dtype, begin=self.offsets[middle])

    def sync(self) -> None:
        """Return when everything is on the disk."""
        with self.path.open("rb") as file:
            os.fsync(file.fileno())

    def digest(self) -> str:
        """sha256 over all micro-batches, hexadecimal."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def check(self, digest: str) -> None:
        """QCompressError when the file is not what was written."""
        if self.digest() != digest:
            raise QCompressError(f"{self.path}: is not what the interrupted run wrote; begin anew with --restart")


def raw_bytes(tensor: Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def boundary(folder: Path, index: int, shapes: Sequence[Shape], rank: int = 0) -> Activations:
    """A process's inputs of block `index`: two files in turn, so that inputs outlive the writing of outputs."""
    return Activations(folder / f"activations-{index % 2}-{rank}.bin", shapes)
