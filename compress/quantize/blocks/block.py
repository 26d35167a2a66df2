"""Quantize one decoder block, stage by stage. Stages read inputs computed by the quantized stages before them."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from calibration.capture import watch_inputs
from compress.core.errors import BadValueError
from compress.core.grid import QuantizedWeight
from compress.model.blocks import Block
from compress.model.families import Feeder, Stage
from compress.model.malloc import release_memory
from compress.model.precision import matmul_in
from compress.quantize.blocks.lockstep import Batches, BlockPass, Outputs, Schedule, lockstep, trace_stages
from compress.quantize.blocks.problem import BlockSettings, StageStatistics, collect_statistics, stage_problem
from compress.quantize.blocks.routing import Routing
from compress.quantize.methods.awq import output_error
from compress.quantize.methods.error_correction import StageInput
from compress.quantize.methods.fold import fold_bias, fold_norm, fold_rows, per_row
from compress.quantize.methods.rtn import rtn
from compress.quantize.methods.table import METHODS, Problem, Solution
from compress.quantize.processes import ALONE, Processes

Row = dict[str, Any]
ERROR_ROWS = 512  # outputs from which a linear's error is estimated, accurate to a few per cent


class Store(Protocol):
    """A sequence of tensors that grows by `append`: a list, or a file."""

    def __iter__(self) -> Iterator[Tensor]: ...
    def append(self, tensor: Tensor, /) -> None: ...


class States(Outputs, Iterable[Tensor], Protocol):
    """The outputs of a block, one tensor per micro-batch: written by index, and read in the order of the indices."""


@dataclass(frozen=True)
class Reference:
    """One block in the 16-bit model, on the same windows as in the quantized model.

    `batches` are the block's inputs, and `outputs` stores its outputs, each (batch, seq, hidden). `store(number)`
    returns an empty store for the reference tensors of stage `number`.
    """

    batches: Batches
    outputs: States
    store: Callable[[int], Store]


@dataclass
class QuantizedBlock:
    """The result for one block: quantized weights and changed parameters by path, and one report row per linear.

    The changed parameters are norms and biases into which AWQ's scales are folded.
    """

    weights: dict[str, QuantizedWeight] = field(default_factory=dict)
    changed: dict[str, Tensor] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)


def stages_of(block: Block, run: Callable[[Tensor], Tensor], sample: Tensor) -> list[Stage]:
    """The block's stages from the family table. If the table misses a linear, the stages are traced on `sample`.

    Stages of blocks with experts are in the order in which this model calls them, which differs between families.
    Raises ValueError if a linear is never called.
    """
    complete = block.stages is not None and {n for stage in block.stages for n in stage.linears} == set(block.linears)
    if block.stages is not None and complete and block.experts is None:
        return list(block.stages)
    traced = [Stage(names) for names in trace_stages(block.linears, lambda: run(sample))]
    if block.stages is not None and complete:
        order = [name for stage in traced for name in stage.linears]
        return sorted(block.stages, key=lambda stage: order.index(stage.linears[0]))
    missing = set(block.linears) - {name for stage in traced for name in stage.linears}
    if missing:
        raise BadValueError(
            f"{block.name}.{min(missing)}: the block never calls this linear, so it has no statistics to quantize with"
        )
    return traced


def quantize_block(
    block: Block,
    run: Callable[[Tensor], Tensor],
    batches: Batches,
    settings: BlockSettings,
    outputs: Outputs,
    schedule: Schedule = lockstep,
    processes: Processes = ALONE,
    reference: Reference | None = None,
) -> QuantizedBlock:
    """Quantize a block, and store the quantized block's outputs for `batches` in `outputs`.

    `batches` are the micro-batches of this process, each (batch, seq, hidden). The weights in `block` are replaced by
    the dequantized ones. `schedule` is `lockstep` or `replay`; both give the same result. Error correction needs a
    `reference`.
    """
    result = QuantizedBlock()
    stages = {stage.linears: stage for stage in stages_of(block, run, batches[0])}
    routing = Routing(block)

    def solve(names: tuple[str, ...], inputs: Iterable[StageInput]) -> None:
        if names not in stages:
            routing.count(inputs, processes)
            return
        statistics = collect_statistics(block, stages[names], inputs, references.get(names), settings)
        with matmul_in(torch.float32):
            first = len(result.rows)
            quantize_stage(block, stages[names], statistics, result, settings, processes)
        routing.describe(names[0], result.rows[first:])

    with matmul_in(settings.matmul_dtype):
        dense = [stage for stage in stages.values() if routing.expert_of(stage.linears[0]) is None]
        references = record_references(block, dense, run, reference) if reference else {}
        schedule(BlockPass(block, routing.insert(list(stages)), run, batches, outputs), solve)
    return result


def record_references(
    block: Block, stages: Sequence[Stage], run: Callable[[Tensor], Tensor], reference: Reference
) -> dict[tuple[str, ...], Iterable[Tensor]]:
    """Run the 16-bit block and record each stage's reference tensors, before any weight is replaced.

    A stage's reference tensors are its inputs. If the stage's output is added to the residual stream, its reference
    tensors are the residual stream after the addition.
    """
    sources = reference_sources(stages)
    stores: dict[str, Store] = {}
    references: dict[tuple[str, ...], Iterable[Tensor]] = {}
    for number, stage in enumerate(stages):
        module = sources[stage]
        if module is None:
            references[stage.linears] = reference.outputs
        else:
            references[stage.linears] = stores[module] = reference.store(number)
    modules = {path: block.module.get_submodule(path) for path in stores}
    with watch_inputs(modules, lambda path, x: stores[path].append(x)):
        for i in range(len(reference.batches)):
            reference.outputs[i] = run(reference.batches[i])
    return references


def reference_sources(stages: Sequence[Stage]) -> dict[Stage, str | None]:
    """For each stage, the module whose inputs are the stage's reference tensors; None if they are block outputs."""
    residual = [stage for stage in stages if stage.residual]
    sources: dict[Stage, str | None] = {stage: stage.linears[0] for stage in stages}
    sources |= {stage: following.residual for stage, following in pairwise(residual)}
    return sources | dict.fromkeys(residual[-1:])


def quantize_stage(
    block: Block,
    stage: Stage,
    statistics: StageStatistics,
    result: QuantizedBlock,
    settings: BlockSettings,
    processes: Processes,
) -> None:
    """Quantize a stage: add its weights and rows to `result`, and replace the weights in `block`."""
    problem, solution = solve_stage(block, stage, statistics, settings, processes)
    effective = solution.effective()
    seconds = time.perf_counter() - statistics.started
    result.rows += error_rows(block, stage, problem, solution, effective, seconds)
    start = 0
    for name in stage.linears:
        linear = block.linears[name]
        rows = slice(start, start + linear.out_features)
        result.weights[name] = solution.weight.rows(rows.start, rows.stop)
        linear.weight.data = effective[rows].to(linear.weight.dtype)
        start = rows.stop
    if solution.scale is not None and stage.feeder is not None:
        fold(block, stage.feeder, solution.scale, result, settings)


def solve_stage(
    block: Block, stage: Stage, statistics: StageStatistics, settings: BlockSettings, processes: Processes
) -> tuple[Problem, Solution]:
    """The problem of a stage, without the Hessian's factor, and the method's solution.

    Raises ValueError with the name of the stage's first linear.
    """
    release_memory()  # the forward pass has freed memory that the factor needs
    try:
        problem = stage_problem(block, stage, statistics, settings, processes)
        release_memory()
        solution = processes.first(lambda: shared_solution(problem, settings, processes)).to(problem.weight.device)
    except BadValueError as error:
        raise BadValueError(f"{block.name}.{stage.linears[0]}: {error}") from error
    return replace(problem, factor=None), solution  # the factor is as large as the Hessian


def shared_solution(problem: Problem, settings: BlockSettings, processes: Processes) -> Solution:
    """The method's solution. For other processes it is on the CPU, because they have other GPUs."""
    solution = METHODS[settings.method](problem)
    return solution if processes.count == 1 else solution.to("cpu")


def fold(block: Block, feeder: Feeder, scale: Tensor, result: QuantizedBlock, settings: BlockSettings) -> None:
    """Fold AWQ's `scale` into the feeder: store the changed norm, or the changed rows and bias, in `result`."""
    if feeder.kind == "norm":
        weight = block.module.get_parameter(f"{feeder.module}.weight")
        result.changed[f"{feeder.module}.weight"] = fold_norm(weight, scale, feeder.offset)
        return
    divisor = per_row(scale, feeder, settings.query_heads_per_kv_head, settings.head_dim)
    result.weights[feeder.module] = fold_rows(result.weights[feeder.module], divisor, settings.scheme.dtype.torch)
    bias = fold_bias(block.linears[feeder.module], divisor)
    if bias is not None:
        result.changed[f"{feeder.module}.bias"] = bias


def error_rows(
    block: Block, stage: Stage, problem: Problem, solution: Solution, effective: Tensor, seconds: float
) -> list[Row]:
    """One report row per linear of a stage. A linear's share of `seconds` is proportional to its number of outputs."""
    rows, start = [], 0
    for name in stage.linears:
        outputs = block.linears[name].out_features
        sample = slice(start, start + outputs, max(1, outputs // ERROR_ROWS))
        rows.append(
            {
                "block": block.name,
                "linear": name,
                **relative_errors(problem, effective, sample),
                "scaled": solution.scale is not None,
                "damp_percent": solution.damp_percent,
                "seconds": round(seconds * outputs / len(problem.weight), 3),
            }
        )
        start += outputs
    return rows


def relative_errors(problem: Problem, effective: Tensor, sample: slice) -> dict[str, float]:
    """tr(ΔW H ΔWᵀ) / tr(W H Wᵀ) over the outputs in `sample`, for the effective weight and for plain rounding."""
    weight = problem.weight[sample]
    rounded = rtn(weight, problem.scheme).dequantize()
    energy, error, rtn_error = (
        output_error(part, problem.hessian, problem.matmul_dtype)
        for part in (weight, effective[sample] - weight, rounded - weight)
    )
    return {"error": error / (energy or 1.0), "rtn_error": rtn_error / (energy or 1.0)}


def round_block(block: Block, settings: BlockSettings) -> QuantizedBlock:
    """Round every linear of a block to nearest; this needs no inputs. Errors in the report rows are ‖ΔW‖² / ‖W‖²."""
    result = QuantizedBlock()
    for name, linear in block.linears.items():
        weight = linear.weight.detach().float()
        result.weights[name] = rtn(weight, settings.scheme_of(f"{block.name}.{name}"))
        error = (result.weights[name].dequantize() - weight).square().sum() / weight.square().sum().clamp(min=1e-30)
        result.rows.append({"block": block.name, "linear": name, "error": error.item(), "rtn_error": error.item()})
    return result
