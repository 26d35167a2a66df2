"""Hidden states beside the loss: a student's block should say what the teacher's block at the same depth says.

    L_align = mean over mapped blocks and tokens of ½ ‖u_s − u_t‖²,     u_s = P h_s / ‖P h_s‖,  u_t = h_t / ‖h_t‖

That is 1 − cos(P h_s, h_t), and exactly 0 where both are the same. A cosine, not a squared error: hidden states grow
with the depth and single channels of single tokens are a thousand times the others, so that a squared error would be
about those. P (teacher width, student width) is one for all blocks, as what they add to is one space; the identity at
first where the widths are equal, random and nearly orthogonal where not. The last block is taken after the final norm.
P belongs to the training and never to the student: `Alignment` is a module beside it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from compress.checkpoint.write import TensorSpec, plan_shard
from compress.core.atomic import write_atomic
from compress.losses import LogitSource, Targets, token_mean

HOLD = 0.5  # of the run at full weight; from there it falls to 0, so that at the end only the loss is learned
Pairs = Sequence[tuple[int, int]]


class Aligned(NamedTuple):
    """What a teacher answers when hidden states count: targets, and its blocks' states (batch, seq - 1, width)."""

    targets: Targets
    states: list[Tensor]


class Blocks(Protocol):
    """A model that tells what its blocks put out."""

    def states(
        self, ids: Tensor, blocks: Sequence[int], documents: Tensor | None = None
    ) -> tuple[LogitSource, list[Tensor]]: ...


class AlignedTeacher:
    """A teacher that tells its hidden states with its targets."""

    def __init__(self, teacher: Blocks, pairs: Pairs):
        self.teacher, self.blocks = teacher, [block for _, block in pairs]

    def side(self, ids: Tensor, documents: Tensor | None = None) -> Aligned:
        return Aligned(*self.teacher.states(ids, self.blocks, documents))


def map_blocks(student: int, teacher: int) -> list[tuple[int, int]]:
    """(student's block, teacher's block), counted from 1, at the same share of the depth; the last ones are a pair."""
    return [(block, max(1, round(block * teacher / student))) for block in range(1, student + 1)]


def align_weight(step: int, steps: int, weight: float) -> float:
    """The weight at a step counted from 1: whole for the first half, then a straight line to 0 after the last."""
    left = 1 - (step - 1) / steps
    return weight * min(1.0, left / (1 - HOLD))


class Alignment(nn.Module):
    """The projection, and the distance of a student's states from a teacher's."""

    def __init__(self, student: int, teacher: int, pairs: Pairs, seed: int = 0):
        """`student` and `teacher` are widths; `pairs` counts blocks from 1."""
        super().__init__()
        self.pairs = tuple(pairs)
        self.projection = nn.Parameter(torch.eye(teacher, student))
        if student != teacher:
            nn.init.orthogonal_(self.projection, generator=torch.Generator().manual_seed(seed))

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor], keep: Tensor, total: float) -> Tensor:
        """The loss of one micro-batch, its share of a mean over `total` tokens. States (batch, seq, width) per pair."""
        found = [
            token_mean(distance(states @ self.projection.T.to(states.dtype), target), keep, total)
            for states, target in zip(student, teacher, strict=True)
        ]
        return torch.stack(found).mean()


def distance(ours: Tensor, theirs: Tensor) -> Tensor:
    """½ ‖u − v‖² of the unit vectors along the last axis, in float32: one less their cosine."""
    unit, other = (nn.functional.normalize(one.float(), dim=-1) for one in (ours, theirs))
    return (unit - other).square().sum(-1) / 2


def save_alignment(path: Path, alignment: Alignment) -> None:
    """The projection as a safetensors file of its own, there whole or not at all."""
    tensor = alignment.projection.detach().float().cpu().contiguous()
    shard = plan_shard(path.name, [TensorSpec("projection", tensor.dtype, tuple(tensor.shape))])
    write_atomic(path, shard.header, tensor.reshape(-1).view(torch.uint8).numpy().data)
