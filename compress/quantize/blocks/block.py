"""Quantize one decoder block: stage by stage, each from inputs that the quantized stages before it have made."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from calibration.capture import watch_inputs
from compress.core.grid import QuantizedWeight
from compress.model.blocks import Block
from compress.model.families import Feeder, Stage
from compress.model.malloc import release_memory
from compress.model.precision import matmul_in
from compress.quantize.blocks.lockstep import Batches, Outputs, StageInput, lockstep, trace_stages
from compress.quantize.blocks.problem import BlockSettings, StageStatistics, stage_problem, sum_up
from compress.quantize.methods.awq import output_error
from compress.quantize.methods.fold import fold_bias, fold_norm, fold_rows, per_row
from compress.quantize.methods.rtn import rtn
from compress.quantize.methods.table import METHODS, Problem, Solution
from compress.quantize.processes import ALONE, Processes

Row = dict[str, Any]
ERROR_ROWS = 512  # tell a linear's error to a few per cent


class Store(Protocol):
    """Tensors in the order they came: a list, or a file of them."""

    def __iter__(self) -> Iterator[Tensor]: ...
    def append(self, tensor: Tensor, /) -> None: ...


class States(Outputs, Iterable[Tensor], Protocol):
    """Tensors that are put where their number says, and read in that order."""


@dataclass(frozen=True)
class Reference:
    """The windows in the 16-bit model: what goes into the block and comes out, each (batch, seq, hidden), and an
    empty store for the aims of a stage, by its number."""

    batches: Batches
    outputs: States
    store: Callable[[int], Store]


@dataclass
class QuantizedBlock:
    """What becomes of a block: weights by linear path, changed parameters (norms, biases) by path, a row per linear."""

    weights: dict[str, QuantizedWeight] = field(default_factory=dict)
    changed: dict[str, Tensor] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)


def stages_of(block: Block, run: Callable[[Tensor], Tensor], sample: Tensor) -> list[Stage]:
    """The block's stages from the table, or traced on one micro-batch where the table has none or misses a linear."""
    if block.stages is not None and {n for stage in block.stages for n in stage.linears} == set(block.linears):
        return list(block.stages)
    traced = [Stage(names) for names in trace_stages(block.linears, lambda: run(sample))]
    unseen = set(block.linears) - {name for stage in traced for name in stage.linears}
    if unseen:
        raise ValueError(
            f"{block.name}.{min(unseen)}: was never called on the calibration text, so it has no statistics"
        )
    return traced


def quantize_block(
    block: Block,
    run: Callable[[Tensor], Tensor],
    batches: Batches,
    settings: BlockSettings,
    outputs: Outputs,
    schedule: Callable[..., None] = lockstep,
    processes: Processes = ALONE,
    reference: Reference | None = None,
) -> QuantizedBlock:
    """The block's codes; `outputs` takes what `batches` (each (batch, seq, hidden)) become through them.

    The block's own weights are replaced on the way. `schedule` is `lockstep` or `replay`: it never changes the result.
    `batches` are this process's share; the `reference` is there to correct a mismatch with it.
    """
    result = QuantizedBlock()
    stages = {stage.linears: stage for stage in stages_of(block, run, batches[0])}

    def solve(names: tuple[str, ...], inputs: Iterable[StageInput]) -> None:
        sums = sum_up(block, stages[names], inputs, wanted.get(names), settings)
        with matmul_in(torch.float32):
            solve_stage(block, stages[names], sums, result, settings, processes)

    with matmul_in(settings.matmul_dtype):
        wanted = record_stages(block, list(stages.values()), run, reference) if reference else {}
        schedule(block, list(stages), run, batches, solve, outputs)
    return result


def record_stages(
    block: Block, stages: Sequence[Stage], run: Callable[[Tensor], Tensor], reference: Reference
) -> dict[tuple[str, ...], Iterable[Tensor]]:
    """What every stage aims at in the 16-bit model, whose states the block runs over before a weight is replaced: the
    stage's inputs, or the residual stream after its outputs."""
    adding = [stage for stage in stages if stage.residual]
    after = {stage: later.residual for stage, later in pairwise(adding)} | dict.fromkeys(adding[-1:])
    stores: dict[str, Store] = {}  # by the module whose inputs they take
    aims: dict[tuple[str, ...], Iterable[Tensor]] = {}
    for number, stage in enumerate(stages):
        module = after.get(stage, stage.linears[0])
        if module is None:
            aims[stage.linears] = reference.outputs
        else:
            aims[stage.linears] = stores[module] = reference.store(number)
    modules = {path: block.module.get_submodule(path) for path in stores}
    with watch_inputs(modules, lambda path, x: stores[path].append(x)):
        for i in range(len(reference.batches)):
            reference.outputs[i] = run(reference.batches[i])
    return aims


def solve_stage(
    block: Block,
    stage: Stage,
    sums: StageStatistics,
    result: QuantizedBlock,
    settings: BlockSettings,
    processes: Processes,
) -> None:
    """The stage's codes from its sums, its rows, and the block's weights replaced by what the codes mean."""
    name = f"{block.name}.{stage.linears[0]}"
    release_memory()  # what the forward has freed, before the factor is made, and again what that took
    try:
        problem = stage_problem(block, stage, sums, settings, processes)
        release_memory()
        solution = processes.first(lambda: METHODS[settings.method](problem))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    problem = replace(problem, factor=None)  # it is as large as the Hessian
    effective = solution.effective()
    result.rows += error_rows(block, stage, problem, solution, effective, time.perf_counter() - sums.started)
    start = 0
    for name in stage.linears:
        linear = block.linears[name]
        end = start + linear.out_features
        result.weights[name] = solution.weight.rows(start, end)
        linear.weight.data = effective[start:end].to(linear.weight.dtype)
        start = end
    if solution.scale is not None and stage.feeder is not None:
        fold(block, stage.feeder, solution.scale, result, settings)


def fold(block: Block, feeder: Feeder, scale: Tensor, result: QuantizedBlock, settings: BlockSettings) -> None:
    """Divide the feeder by `scale`, in what will be written."""
    if feeder.kind == "norm":
        weight = block.module.get_parameter(f"{feeder.module}.weight")
        result.changed[f"{feeder.module}.weight"] = fold_norm(weight, scale, feeder.offset)
        return
    divisor = per_row(scale, feeder, settings.query_heads_per_kv_head, settings.head_dim)
    result.weights[feeder.module] = fold_rows(result.weights[feeder.module], divisor, settings.scheme.dtype)
    bias = fold_bias(block.linears[feeder.module], divisor)
    if bias is not None:
        result.changed[f"{feeder.module}.bias"] = bias


def error_rows(
    block: Block, stage: Stage, problem: Problem, solution: Solution, effective: Tensor, seconds: float
) -> list[Row]:
    """A row per linear: its relative output error, and plain rounding's, both tr(ΔW H ΔWᵀ) / tr(W H Wᵀ), read off
    about ERROR_ROWS of its outputs, evenly spread."""
    rows, start = [], 0
    for name in stage.linears:
        outputs = block.linears[name].out_features
        some = slice(start, start + outputs, max(1, outputs // ERROR_ROWS))
        weight = problem.weight[some]
        plain = rtn(weight, problem.scheme).dequantize()
        wanted, found, rounded = (
            output_error(part, problem.hessian, problem.matmul_dtype)
            for part in (weight, effective[some] - weight, plain - weight)
        )
        rows.append(
            {
                "block": block.name,
                "linear": name,
                "error": found / (wanted or 1.0),
                "rtn_error": rounded / (wanted or 1.0),
                "scaled": solution.scale is not None,
                "damp_percent": solution.damp_percent,
                "seconds": round(seconds * outputs / len(problem.weight), 3),
            }
        )
        start += outputs
    return rows


def round_block(block: Block, settings: BlockSettings) -> QuantizedBlock:
    """Plain rounding of every linear: needs no inputs. Errors are those of the weights, ‖ΔW‖² / ‖W‖²."""
    result = QuantizedBlock()
    for name, linear in block.linears.items():
        weight = linear.weight.detach().float()
        result.weights[name] = rtn(weight, settings.scheme_of(f"{block.name}.{name}"))
        error = (result.weights[name].dequantize() - weight).square().sum() / weight.square().sum().clamp(min=1e-30)
        result.rows.append({"block": block.name, "linear": name, "error": error.item(), "rtn_error": error.item()})
    return result
