"""Zero-pad the MLPs of a checkpoint, so that tensor parallelism can cut them into whole groups.

    down(act(gate x) * up x):   new rows of gate and up are 0, so their products are 0; new columns of down are 0

The padded model computes the same function, exactly. No file changes: tensors are padded when they are read.
"""

import copy
from dataclasses import replace
from typing import TYPE_CHECKING

from compress.checkpoint.read import Checkpoint

if TYPE_CHECKING:
    from torch import Tensor

SIZE = "intermediate_size"
AXES = {"gate_proj.weight": 0, "gate_proj.bias": 0, "up_proj.weight": 0, "up_proj.bias": 0, "down_proj.weight": 1}


def padded_axis(name: str) -> int | None:
    """The axis of a parameter that grows with the MLP. None for parameters outside of MLPs."""
    before, _, local = name.rpartition(".mlp.")
    return AXES.get(local) if before else None


def pad_mlp(checkpoint: Checkpoint, size: int) -> Checkpoint:
    """The checkpoint with an intermediate size of `size`. Its tensors are padded with zeros when they are read."""
    padded = PaddedCheckpoint.__new__(PaddedCheckpoint)
    padded.__dict__ |= copy.copy(checkpoint.__dict__)
    padded.unpadded = checkpoint
    padded.config = checkpoint.config | {SIZE: size}
    for name, info in checkpoint.tensors.items():
        axis = padded_axis(name)
        if axis is not None:
            shape = (*info.shape[:axis], size, *info.shape[axis + 1 :])
            padded.tensors = {**padded.tensors, name: replace(info, shape=shape)}
    return padded


class PaddedCheckpoint(Checkpoint):
    """A checkpoint whose MLPs are larger than those in its files."""

    unpadded: Checkpoint

    def tensor(self, name: str) -> "Tensor":
        """The tensor, with zeros after the stored numbers."""
        stored, axis = self.unpadded.tensor(name), padded_axis(name)
        if axis is None:
            return stored
        whole = stored.new_zeros(self.tensors[name].shape)
        whole.narrow(axis, 0, stored.shape[axis]).copy_(stored)
        return whole
