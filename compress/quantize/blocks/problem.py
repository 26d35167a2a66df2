"""What one stage asks of a method: sums over the windows, and the problem that they make."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from calibration.statistics import Hessian, all_finite, shrunk
from compress.core.grid import Scheme
from compress.model.blocks import Block
from compress.model.families import Feeder, Stage
from compress.quantize.blocks.lockstep import StageInput
from compress.quantize.methods.error_correction import Mismatch, retarget
from compress.quantize.methods.gptq import inverse_factor
from compress.quantize.methods.table import SCALING, Problem
from compress.quantize.processes import Processes


@dataclass(frozen=True)
class BlockSettings:
    """The options that all blocks of a checkpoint share.

    `scheme` is that of most linears. `eight_bit` holds the full paths of the linears with 8 bits and a symmetric grid;
    linears of one stage are all in it or all not. A value head of `head_dim` channels feeds `query_heads_per_kv_head`
    query heads. On a CPU, matrix products are computed in `matmul_dtype`; sums and codes are float32.
    """

    method: str
    scheme: Scheme
    damp_percent: float
    error_correction: float
    query_heads_per_kv_head: int
    head_dim: int
    eight_bit: frozenset[str] = frozenset()
    matmul_dtype: torch.dtype = torch.float32

    def scheme_of(self, linear: str) -> Scheme:
        """The scheme of a linear, by its full path."""
        return replace(self.scheme, bits=8, sym=True) if linear in self.eight_bit else self.scheme


@dataclass(frozen=True)
class StageStatistics:
    """What this process's windows have brought to one stage."""

    hessian: Hessian
    mismatch: Mismatch | None = None
    started: float = field(default_factory=time.perf_counter)


def sum_up(
    block: Block, stage: Stage, inputs: Iterable[StageInput], wanted: Iterable[Tensor] | None, settings: BlockSettings
) -> StageStatistics:
    """The sums over `inputs`; `wanted` is what the 16-bit model has there, where the mismatch with it is corrected.

    Inputs may be made as they are asked for, by the block and in the products of its own.
    """
    first = block.linears[stage.linears[0]]
    hessian = Hessian(first.in_features, settings.matmul_dtype)
    if wanted is None:
        sums = StageStatistics(hessian)
        for seen in inputs:
            hessian.update(seen.x)
        return sums
    bias = first.bias  # a stage that adds to the residual stream is one linear
    mismatch = Mismatch(
        stacked(block, stage), bias, adds=stage.residual is not None, matmul_dtype=settings.matmul_dtype
    )
    sums = StageStatistics(hessian, mismatch)
    for seen, aim in zip(inputs, wanted, strict=True):
        hessian.update(seen.x)
        mismatch.update(seen, aim)
    return sums


def stacked(block: Block, stage: Stage) -> Tensor:
    """The weights of a stage's linears, rows stacked: (out, in) float32."""
    return torch.cat([block.linears[name].weight.detach().float() for name in stage.linears])


def stage_problem(
    block: Block, stage: Stage, sums: StageStatistics, settings: BlockSettings, processes: Processes
) -> Problem:
    """What the stage's weight shall be, and the mean of x xᵀ over all tokens of all processes' inputs, with its factor
    where that was needed and will serve again. ValueError when the mean is not finite."""
    problem = Problem(
        stacked(block, stage),
        finished(sums.hessian, processes),
        settings.scheme_of(f"{block.name}.{stage.linears[0]}"),
        settings.damp_percent,
        scalable=stage.feeder is not None and settings.method in SCALING,
        query_heads_per_kv_head=heads_per_feeder_head(stage.feeder, settings),
        head_dim=settings.head_dim,
        matmul_dtype=settings.matmul_dtype,
    )
    if sums.mismatch is None:
        return problem
    moved = summed(sums.mismatch, processes)
    factor = inverse_factor(problem.hessian, settings.damp_percent)
    wide, matmul_dtype = sums.mismatch.wide, settings.matmul_dtype
    target = retarget(problem.weight, factor, moved, settings.error_correction, wide=wide, matmul_dtype=matmul_dtype)
    return replace(problem, weight=target, factor=None if problem.scalable else factor)


def finished(hessian: Hessian, processes: Processes) -> Tensor:
    """The Hessian of all processes' tokens, shrunk as their number asks for. ValueError when it is not finite, or when
    there is no token."""
    tokens = processes.total(hessian.tokens)
    if not tokens:
        raise ValueError("no token of the calibration text reaches it, so it has no statistics")
    value = processes.mean(hessian.take(), hessian.tokens)
    if not all_finite(value):
        raise ValueError("its inputs are not finite on the calibration text")
    return shrunk(value, tokens)


def summed(mismatch: Mismatch, processes: Processes) -> Tensor:
    """The mismatch of all processes' tokens. ValueError when it is not finite."""
    value = processes.mean(mismatch.take(), mismatch.tokens)
    if not all_finite(value):
        raise ValueError("what the 16-bit model makes there is not finite on the calibration text")
    return value


def heads_per_feeder_head(feeder: Feeder | None, settings: BlockSettings) -> int:
    """How many neighbouring heads must have the same scales, because one value head feeds them all."""
    return settings.query_heads_per_kv_head if feeder is not None and feeder.kind == "heads" else 1
