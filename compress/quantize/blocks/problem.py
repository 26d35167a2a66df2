"""What one stage asks of a method: sums over the windows, and the problem that they make."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from calibration.statistics import Hessian, all_finite, shrunk
from compress.model.blocks import Block
from compress.model.families import Feeder, Stage
from compress.quantize.blocks.lockstep import StageInput
from compress.quantize.methods.error_correction import Mismatch, retarget
from compress.quantize.methods.gptq import inverse_factor
from compress.quantize.methods.table import SCALING, Problem
from compress.quantize.processes import Processes


@dataclass(frozen=True)
class BlockSettings:
    """What all blocks of a checkpoint share: method, grid as its format will store it, damping, mismatch, heads.

    Blocks and statistics multiply in `products` on a CPU, where all sums and codes are float32.
    `share` query heads of `width` channels hang on one value head. `eight_bit` are the full paths of linears that get
    8 bits, always whole stages, and always symmetric.
    """

    method: str
    bits: int
    group_size: int
    sym: bool
    dtype: torch.dtype
    damp_percent: float
    mismatch: float
    share: int
    width: int
    eight_bit: frozenset[str] = frozenset()
    products: torch.dtype = torch.float32

    def grid(self, linear: str) -> dict[str, Any]:
        """The grid of a linear, by its full path."""
        wide = linear in self.eight_bit
        bits, sym = (8, True) if wide else (self.bits, self.sym)
        return {"bits": bits, "group_size": self.group_size, "sym": sym, "dtype": self.dtype}


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
    hessian = Hessian(first.in_features, settings.products)
    if wanted is None:
        sums = StageStatistics(hessian)
        for seen in inputs:
            hessian.update(seen.x)
        return sums
    bias = first.bias  # a stage that adds to the residual stream is one linear
    mismatch = Mismatch(stacked(block, stage), bias, adds=stage.residual is not None, products=settings.products)
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
    share, grid = sharing(stage.feeder, settings), settings.grid(f"{block.name}.{stage.linears[0]}")
    known = {"damp_percent": settings.damp_percent, "share": share, "width": settings.width, **grid}
    known["products"] = settings.products
    weight = stacked(block, stage)
    value = finished(sums.hessian, processes)
    if sums.mismatch is None:
        return Problem(weight, value, **known)
    moved = summed(sums.mismatch, processes)
    factor = inverse_factor(value, settings.damp_percent)
    wide, products = sums.mismatch.wide, settings.products
    target = retarget(weight, factor, moved, settings.mismatch, wide=wide, products=products)
    return Problem(target, value, factor=None if share else factor, **known)


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


def sharing(feeder: Feeder | None, settings: BlockSettings) -> int:
    """How many neighbouring heads must share their scales: 0 where nothing is scaled, or nothing can take them."""
    if feeder is None or settings.method not in SCALING:
        return 0
    return settings.share if feeder.kind == "heads" else 1
