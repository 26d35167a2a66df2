"""Alignment of hidden states: a loss between each block of the student and the teacher's block at the same depth.

    L_align = mean over mapped blocks and tokens of ½ ‖u_s − u_t‖²,     u_s = P h_s / ‖P h_s‖,  u_t = h_t / ‖h_t‖

The distance ½ ‖u_s − u_t‖² equals 1 − cos(P h_s, h_t), and is exactly 0 for equal states. In a plain squared error, a
few channels a thousand times larger than the others would dominate. All blocks share one P (teacher width, student
width), because all write to one residual stream. P starts as the identity for equal widths, else as a random orthogonal
matrix. The last block's state is taken after the final norm. P serves training only; the student does not contain it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from compress.checkpoint.workdir import tensors_kind
from compress.checkpoint.write import TensorSpec, plan_shard
from compress.core.atomic import write_atomic
from compress.losses import LogitSource, Targets, token_mean

PROJECTION = "projection"
ALIGNMENT = tensors_kind(PROJECTION)
HOLD = 0.5  # share of the run at full weight; then the weight falls linearly to 0
Pairs = Sequence[tuple[int, int]]


class Aligned(NamedTuple):
    """A teacher's targets, and the hidden states after its blocks, (batch, seq - 1, width) each."""

    targets: Targets
    states: list[Tensor]


class Blocks(Protocol):
    """A model with a method `states`, which returns logits and the outputs of blocks."""

    def states(
        self, ids: Tensor, blocks: Sequence[int], documents: Tensor | None = None
    ) -> tuple[LogitSource, list[Tensor]]: ...


class AlignedTeacher:
    """A teacher whose `side` returns targets together with hidden states."""

    def __init__(self, teacher: Blocks, pairs: Pairs):
        self.teacher, self.blocks, self.on_host = teacher, [block for _, block in pairs], False

    def side(self, ids: Tensor, documents: Tensor | None = None) -> Aligned:
        return Aligned(*self.teacher.states(ids, self.blocks, documents))


def map_blocks(student: int, teacher: int) -> list[tuple[int, int]]:
    """Pairs (student's block, teacher's block) at the same relative depth, counted from 1.

    The last block of the student belongs to the last block of the teacher.
    """
    return [(block, max(1, round(block * teacher / student))) for block in range(1, student + 1)]


def align_weight(step: int, steps: int, weight: float) -> float:
    """The weight of the alignment at a step: constant in the first half of the run, then falling linearly towards 0.

    Steps count from 1.
    """
    left = 1 - (step - 1) / steps
    return weight * min(1.0, left / (1 - HOLD))


class Alignment(nn.Module):
    """The alignment loss of a student's and a teacher's hidden states, with its projection P."""

    def __init__(self, student: int, teacher: int, pairs: Pairs, seed: int = 0):
        """`student` and `teacher` are widths; `pairs` counts blocks from 1."""
        super().__init__()
        self.pairs = tuple(pairs)
        self.projection = nn.Parameter(torch.eye(teacher, student))
        if student != teacher:
            nn.init.orthogonal_(self.projection, generator=torch.Generator().manual_seed(seed))

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor], keep: Tensor, total: float) -> Tensor:
        """The distances of one micro-batch, summed over the tokens in `keep`, divided by `total`, averaged over pairs.

        States are (batch, seq, width).
        """
        distances = [
            token_mean(distance(states @ self.projection.T.to(states.dtype), target), keep, total)
            for states, target in zip(student, teacher, strict=True)
        ]
        return torch.stack(distances).mean()


def distance(student: Tensor, teacher: Tensor) -> Tensor:
    """1 minus the cosine between student and teacher along the last axis, in float32."""
    unit, other = (nn.functional.normalize(state.float(), dim=-1) for state in (student, teacher))
    return (unit - other).square().sum(-1) / 2


def save_alignment(path: Path, alignment: Alignment) -> None:
    """Write the projection P to a safetensors file, atomically."""
    tensor = alignment.projection.detach().float().cpu().contiguous()
    shard = plan_shard(path.name, [TensorSpec.of(PROJECTION, tensor)])
    write_atomic(path, shard.header, tensor.reshape(-1).view(torch.uint8).numpy().data, kind=ALIGNMENT)
