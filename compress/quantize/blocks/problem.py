"""From the inputs of one stage to the problem that a method solves: statistics over the windows, then a `Problem`."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from calibration.statistics import Hessian, all_finite, shrunk
from compress.core.grid import Scheme
from compress.model.blocks import Block
from compress.model.families import Feeder, Stage
from compress.quantize.methods.error_correction import ErrorCovariance, StageInput, correct_weight
from compress.quantize.methods.gptq import inverse_factor
from compress.quantize.methods.table import SCALING, Problem
from compress.quantize.processes import Processes


@dataclass(frozen=True)
class BlockSettings:
    """The options that all blocks of a checkpoint share.

    `scheme` is that of most linears. `eight_bit` holds the full paths of the linears with 8 bits and a symmetric grid;
    it holds all linears of a stage or none. A value head of `head_dim` channels feeds `query_heads_per_kv_head` query
    heads. On a CPU, matrix products are computed in `matmul_dtype`; sums and codes are float32.
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
    """The statistics of one stage over this process's windows; `started` is when the first window arrived."""

    hessian: Hessian
    error_covariance: ErrorCovariance | None = None
    started: float = field(default_factory=time.perf_counter)


def collect_statistics(
    block: Block,
    stage: Stage,
    inputs: Iterable[StageInput],
    references: Iterable[Tensor] | None,
    settings: BlockSettings,
) -> StageStatistics:
    """The statistics of `inputs`. For error correction, `references` holds the 16-bit model's tensor of each input."""
    first = block.linears[stage.linears[0]]
    hessian = Hessian(first.in_features, settings.matmul_dtype)
    if references is None:
        statistics = StageStatistics(hessian)
        for batch in inputs:
            hessian.update(batch.x)
        return statistics
    covariance = ErrorCovariance(
        stacked_weight(block, stage),
        first.bias,  # a stage whose output is added to the residual stream is one linear
        residual_outputs=stage.residual is not None,
        matmul_dtype=settings.matmul_dtype,
    )
    statistics = StageStatistics(hessian, covariance)
    for batch, reference in zip(inputs, references, strict=True):
        hessian.update(batch.x)
        covariance.update(batch, reference)
    return statistics


def stacked_weight(block: Block, stage: Stage) -> Tensor:
    """The weights of a stage's linears, rows stacked: (out, in) float32."""
    return torch.cat([block.linears[name].weight.detach().float() for name in stage.linears])


def stage_problem(
    block: Block, stage: Stage, statistics: StageStatistics, settings: BlockSettings, processes: Processes
) -> Problem:
    """The stage's weight, after error correction, and the Hessian over the tokens of all processes.

    It includes the Hessian's factor if error correction computed one that the method can use again. ValueError for
    statistics that are not finite.
    """
    problem = Problem(
        stacked_weight(block, stage),
        reduced_hessian(statistics.hessian, processes),
        settings.scheme_of(f"{block.name}.{stage.linears[0]}"),
        settings.damp_percent,
        scalable=stage.feeder is not None and settings.method in SCALING,
        query_heads_per_kv_head=heads_per_feeder_head(stage.feeder, settings),
        head_dim=settings.head_dim,
        matmul_dtype=settings.matmul_dtype,
    )
    if statistics.error_covariance is None:
        return problem
    return corrected(problem, statistics.error_covariance, settings.error_correction, processes)


def corrected(problem: Problem, covariance: ErrorCovariance, strength: float, processes: Processes) -> Problem:
    """The problem with its weight moved towards the least-squares fit to the 16-bit outputs, in place."""
    value = reduced_covariance(covariance, processes)
    factor = inverse_factor(problem.hessian, problem.damp_percent)
    weight = correct_weight(
        problem.weight,
        factor,
        value,
        strength,
        from_inputs=covariance.from_inputs,
        matmul_dtype=problem.matmul_dtype,
    )
    return replace(problem, weight=weight, factor=None if problem.scalable else factor)


def reduced_hessian(hessian: Hessian, processes: Processes) -> Tensor:
    """The Hessian over the tokens of all processes, shrunk by their number. ValueError if it is not finite or empty."""
    tokens = processes.total(hessian.tokens)
    if not tokens:
        raise ValueError("no token of the calibration text reaches it, so it has no statistics")
    value = processes.mean(hessian.take(), hessian.tokens)
    if not all_finite(value):
        raise ValueError("its inputs are not finite on the calibration text")
    return shrunk(value, tokens)


def reduced_covariance(covariance: ErrorCovariance, processes: Processes) -> Tensor:
    """The error covariance over the tokens of all processes. ValueError if it is not finite."""
    value = processes.mean(covariance.take(), covariance.tokens)
    if not all_finite(value):
        raise ValueError("its outputs in the 16-bit model are not finite on the calibration text")
    return value


def heads_per_feeder_head(feeder: Feeder | None, settings: BlockSettings) -> int:
    """How many neighbouring heads must have the same scales, because one value head feeds them all."""
    return settings.query_heads_per_kv_head if feeder is not None and feeder.kind == "heads" else 1
