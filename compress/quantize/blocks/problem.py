"""Build the `Problem` that a method solves for one stage, from the stage's weights and statistics of its inputs."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from calibration.statistics import Hessian, all_finite, shrunk
from compress.core.errors import BadValueError
from compress.core.grid import Scheme
from compress.model.blocks import Block
from compress.model.families import Feeder, Stage
from compress.quantize.methods.error_correction import ErrorCovariance, StageInput, correct_weight
from compress.quantize.methods.gptq import inverse_factor
from compress.quantize.methods.table import SCALING, Problem
from compress.quantize.processes import Processes


@dataclass(frozen=True)
class BlockSettings:
    """The options that are the same for all blocks of a checkpoint.

    `eight_bit` holds the full paths of the linears that get 8 bits and a symmetric grid. It contains either all linears
    of a stage or none. All other linears get `scheme`. A value head has `head_dim` channels and feeds
    `query_heads_per_kv_head` query heads. On a CPU, matrix products are computed in `matmul_dtype`; sums and codes are
    float32.
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
    """Statistics of a stage's inputs over this process's windows. `started` is the time when the collection began."""

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
    """Collect the statistics of a stage's `inputs`.

    For error correction, `references` has one tensor of the 16-bit model for each input; see `record_references`.
    """
    first = block.linears[stage.linears[0]]
    hessian = Hessian(first.in_features, settings.matmul_dtype)
    if references is None:
        statistics = StageStatistics(hessian)
        for batch in inputs:
            hessian.update(batch.x)
        return statistics
    covariance = ErrorCovariance(
        stacked_weight(block, stage),
        first.bias,  # only used if the output is added to the residual stream; such a stage has a single linear
        residual_outputs=stage.residual is not None,
        matmul_dtype=settings.matmul_dtype,
    )
    statistics = StageStatistics(hessian, covariance)
    for batch, reference in zip(inputs, references, strict=True):
        hessian.update(batch.x)
        covariance.update(batch, reference)
    return statistics


def stacked_weight(block: Block, stage: Stage) -> Tensor:
    """The weights of a stage's linears, stacked along their rows: (out, in) float32."""
    return torch.cat([block.linears[name].weight.detach().float() for name in stage.linears])


def stage_problem(
    block: Block, stage: Stage, statistics: StageStatistics, settings: BlockSettings, processes: Processes
) -> Problem:
    """The problem of one stage: its weight after error correction, and the Hessian over the tokens of all processes.

    If error correction factored the Hessian and the method can use that factor, the problem includes it.
    Raises ValueError if statistics are empty or not finite.
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
    """The problem after error correction, which moves the weight in place towards the fit to the 16-bit outputs."""
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
    """The Hessian over the tokens of all processes, shrunk in place by `shrunk`.

    Raises ValueError if the Hessian is empty or not finite.
    """
    tokens = processes.total(hessian.tokens)
    if not tokens:
        raise BadValueError("no token of the calibration text reaches this linear, so its statistics are empty")
    value = processes.mean(hessian.take(), hessian.tokens)
    if not all_finite(value):
        raise BadValueError("the inputs are NaN or infinite on the calibration text")
    return shrunk(value, tokens)


def reduced_covariance(covariance: ErrorCovariance, processes: Processes) -> Tensor:
    """The error covariance over the tokens of all processes. Raises ValueError if it is not finite."""
    value = processes.mean(covariance.take(), covariance.tokens)
    if not all_finite(value):
        raise BadValueError("the 16-bit model's outputs are NaN or infinite on the calibration text")
    return value


def heads_per_feeder_head(feeder: Feeder | None, settings: BlockSettings) -> int:
    """The number of neighbouring query heads that share scales: those of one value head; 1 without value heads."""
    return settings.query_heads_per_kv_head if feeder is not None and feeder.kind == "heads" else 1
