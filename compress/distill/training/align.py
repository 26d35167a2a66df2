"""Alignment of hidden states: a loss between a student's block and the teacher's block at the same depth.

    L_align = mean over mapped blocks and tokens of ½ ‖u_s − u_t‖²,     u_s = P h_s / ‖P h_s‖,  u_t = h_t / ‖h_t‖

That is 1 − cos(P h_s, h_t), and exactly 0 for equal states. A squared error would be dominated by a few channels that
are a thousand times larger than the others. All blocks share one P (teacher width, student width), because they write
to one residual stream. P starts as the identity for equal widths, else as a random orthogonal matrix. The last block's
state is taken after the final norm. P is used in training only and is not part of the student.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from compress.checkpoint.write import TensorSpec, plan_shard
from compress.core.atomic import write_atomic
from compress.losses import LogitSource, Targets, token_mean

HOLD = 0.5  # share of the run at full weight; then the weight falls to 0, so the end minimizes the loss alone
Pairs = Sequence[tuple[int, int]]


class Aligned(NamedTuple):
    """A teacher's targets, and the hidden states of its blocks, (batch, seq - 1, width) each."""

    targets: Targets
    states: list[Tensor]


class Blocks(Protocol):
    """A model that returns the outputs of its blocks."""

    def states(
        self, ids: Tensor, blocks: Sequence[int], documents: Tensor | None = None
    ) -> tuple[LogitSource, list[Tensor]]: ...


class AlignedTeacher:
    """A teacher that returns hidden states with its targets."""

    def __init__(self, teacher: Blocks, pairs: Pairs):
        self.teacher, self.blocks = teacher, [block for _, block in pairs]

    def side(self, ids: Tensor, documents: Tensor | None = None) -> Aligned:
        return Aligned(*self.teacher.states(ids, self.blocks, documents))


def map_blocks(student: int, teacher: int) -> list[tuple[int, int]]:
    """Pairs (student's block, teacher's block), counted from 1, at the same relative depth; the last two match."""
    return [(block, max(1, round(block * teacher / student))) for block in range(1, student + 1)]


def align_weight(step: int, steps: int, weight: float) -> float:
    """The weight at a step, counted from 1: full for the first half, then linear to 0 after the last step."""
    left = 1 - (step - 1) / steps
    return weight * min(1.0, left / (1 - HOLD))


class Alignment(nn.Module):
    """The projection P, and the distance between states of student and teacher."""

    def __init__(self, student: int, teacher: int, pairs: Pairs, seed: int = 0):
        """`student` and `teacher` are widths; `pairs` counts blocks from 1."""
        super().__init__()
        self.pairs = tuple(pairs)
        self.projection = nn.Parameter(torch.eye(teacher, student))
        if student != teacher:
            nn.init.orthogonal_(self.projection, generator=torch.Generator().manual_seed(seed))

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor], keep: Tensor, total: float) -> Tensor:
        """The sum of one micro-batch over `total` tokens, averaged over pairs. States are (batch, seq, width)."""
        distances = [
            token_mean(distance(states @ self.projection.T.to(states.dtype), target), keep, total)
            for states, target in zip(student, teacher, strict=True)
        ]
        return torch.stack(distances).mean()


def distance(student: Tensor, teacher: Tensor) -> Tensor:
    """½ ‖u − v‖² of the unit vectors along the last axis, in float32: 1 minus their cosine."""
    unit, other = (nn.functional.normalize(state.float(), dim=-1) for state in (student, teacher))
    return (unit - other).square().sum(-1) / 2


def save_alignment(path: Path, alignment: Alignment) -> None:
    """Write the projection to a safetensors file, atomically."""
    tensor = alignment.projection.detach().float().cpu().contiguous()
    shard = plan_shard(path.name, [TensorSpec("projection", tensor.dtype, tuple(tensor.shape))])
    write_atomic(path, shard.header, tensor.reshape(-1).view(torch.uint8).numpy().data)
