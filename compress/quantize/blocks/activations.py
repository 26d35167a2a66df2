"""Hidden states between two blocks, stored in a file, so that a killed run can continue.

Reads and writes go through the page cache, which the kernel shrinks when memory is short. The process itself holds only
the micro-batch that it works on. On a GPU, states are also kept in its memory, if they fit; then only writes remain.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from compress.core.atomic import file_errors
from compress.core.errors import QCompressError

Shape = tuple[int, ...]


class Activations:
    """Micro-batches (batch, seq, hidden) in one file. The first one begins at byte `begin`.

    `activations[i]` reads a micro-batch; `activations[i] = x` writes it. `kept` holds micro-batches on their device, by
    their first byte in the file. None keeps nothing.
    """

    def __init__(
        self,
        path: Path,
        shapes: Sequence[Shape],
        dtype: torch.dtype = torch.float32,
        *,
        begin: int = 0,
        kept: dict[int, Tensor] | None = None,
    ):
        self.path, self.shapes, self.dtype, self.kept = path, list(shapes), dtype, kept
        sizes = [prod(shape) * dtype.itemsize for shape in shapes]
        self.offsets = [begin + sum(sizes[:i]) for i in range(len(sizes) + 1)]
        with file_errors(path):
            path.touch()

    def __len__(self) -> int:
        return len(self.shapes)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: int) -> Tensor:
        if self.kept and self.offsets[index] in self.kept:
            return self.kept[self.offsets[index]]
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
        if self.kept is not None:
            self.kept[self.offsets[index]] = tensor.detach().to(self.dtype)
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
        shapes = self.shapes[:middle], self.shapes[middle:]
        first, second = (
            Activations(self.path, part, self.dtype, begin=begin, kept=self.kept)
            for part, begin in zip(shapes, (self.offsets[0], self.offsets[middle]), strict=True)
        )
        return first, second

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


@dataclass(frozen=True)
class ActivationStore:
    """Opens the files of one process in `folder`. States have `dtype`; with `keep`, they also stay on their device."""

    folder: Path
    rank: int = 0
    dtype: torch.dtype = torch.float32
    keep: bool = False

    def block_inputs(self, index: int, shapes: Sequence[Shape]) -> Activations:
        """The inputs of block `index`. Blocks alternate between two files.

        So a block can read its inputs from one file while it writes its outputs to the other.
        """
        return self.open(f"activations-{index % 2}", shapes)

    def stage(self, number: int) -> Activations:
        """An empty store for the reference tensors of a stage. It overwrites the file that the previous block used."""
        return self.open(f"stage-{number}", [])

    def open(self, name: str, shapes: Sequence[Shape]) -> Activations:
        return Activations(self.folder / f"{name}-{self.rank}.bin", shapes, self.dtype, kept={} if self.keep else None)
