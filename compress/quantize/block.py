"""Quantize one decoder block: stage by stage, each from inputs that the quantized stages before it have made."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from calibration.capture import watch_inputs
from calibration.statistics import Hessian, Mismatch, all_finite, shrunk
from compress.model.blocks import Block
from compress.model.families import Feeder, Stage
from compress.model.memory import give_back
from compress.quantize.awq import output_error
from compress.quantize.fold import fold_bias, fold_norm, fold_rows, per_row
from compress.quantize.gptq import inverse_factor
from compress.quantize.grid import QuantizedWeight
from compress.quantize.lockstep import Batches, Outputs, lockstep, trace_stages
from compress.quantize.methods import METHODS, SCALING, Problem, Solution
from compress.quantize.mismatch import retarget
from compress.quantize.processes import ALONE, Processes
from compress.quantize.rtn import rtn

Row = dict[str, Any]


@dataclass(frozen=True)
class BlockSettings:
    """What all blocks of a checkpoint share: method, grid as its format will store it, damping, mismatch, heads.

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

    def grid(self, linear: str) -> dict[str, Any]:
        """The grid of a linear, by its full path."""
        wide = linear in self.eight_bit
        bits, sym = (8, True) if wide else (self.bits, self.sym)
        return {"bits": bits, "group_size": self.group_size, "sym": sym, "dtype": self.dtype}


class Store(Protocol):
    """Tensors in the order they came: a list, or a file of them."""

    def __iter__(self) -> Iterator[Tensor]: ...
    def append(self, tensor: Tensor, /) -> None: ...


@dataclass(frozen=True)
class Reference:
    """The windows in the 16-bit model: what goes into the block and comes out, each (batch, seq, hidden), and an
    empty store for the inputs of a stage, by its number."""

    batches: Batches
    outputs: Outputs
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
    drive: Callable[..., None] = lockstep,
    processes: Processes = ALONE,
    reference: Reference | None = None,
) -> QuantizedBlock:
    """The block's codes; `outputs` takes what `batches` (each (batch, seq, hidden)) become through them.

    The block's own weights are replaced on the way. `drive` is `lockstep` or `replay`: it never changes the result.
    `batches` are this process's share; the `reference` is there to correct a mismatch with it.
    """
    result = QuantizedBlock()
    stages = {stage.linears: stage for stage in stages_of(block, run, batches[0])}
    wanted = record_stages(block, list(stages), run, reference) if reference else {}

    def solve(names: tuple[str, ...], inputs: Iterable[Tensor]) -> None:
        solve_stage(block, stages[names], inputs, wanted.get(names), result, settings, processes)

    drive(block, list(stages), run, batches, solve, outputs)
    return result


def record_stages(
    block: Block, stages: Sequence[tuple[str, ...]], run: Callable[[Tensor], Tensor], reference: Reference
) -> dict[tuple[str, ...], Store]:
    """Every stage's inputs in the 16-bit model: the block runs over that model's states before a weight is replaced."""
    stores = {names: reference.store(number) for number, names in enumerate(stages)}
    first = {names[0]: store for names, store in stores.items()}
    with watch_inputs({name: block.linears[name] for name in first}, lambda name, x: first[name].append(x)):
        for i in range(len(reference.batches)):
            reference.outputs[i] = run(reference.batches[i])
    return stores


def solve_stage(
    block: Block,
    stage: Stage,
    inputs: Iterable[Tensor],
    wanted: Iterable[Tensor] | None,
    result: QuantizedBlock,
    settings: BlockSettings,
    processes: Processes,
) -> None:
    """Statistics of one stage, its codes, its rows, and the block's weights replaced by what the codes mean.

    `wanted` are the inputs that the 16-bit model would have had, where the mismatch with them is corrected.
    """
    started = time.perf_counter()
    name = f"{block.name}.{stage.linears[0]}"
    try:
        problem = stage_problem(block, stage, inputs, wanted, settings, processes)
        give_back()
        solution = processes.first(lambda: METHODS[settings.method](problem))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    problem = replace(problem, factor=None)  # it is as large as the Hessian
    give_back()
    effective = solution.effective()
    result.rows += error_rows(block, stage, problem, solution, effective, time.perf_counter() - started)
    start = 0
    for name in stage.linears:
        linear = block.linears[name]
        end = start + linear.out_features
        result.weights[name] = solution.weight.rows(start, end)
        linear.weight.data = effective[start:end].to(linear.weight.dtype)
        start = end
    if solution.scale is not None and stage.feeder is not None:
        fold(block, stage.feeder, solution.scale, result, settings)


def sharing(feeder: Feeder | None, settings: BlockSettings) -> int:
    """How many neighbouring heads must share their scales: 0 where nothing is scaled, or nothing can take them."""
    if feeder is None or settings.method not in SCALING:
        return 0
    return settings.share if feeder.kind == "heads" else 1


def stage_problem(
    block: Block,
    stage: Stage,
    inputs: Iterable[Tensor],
    wanted: Iterable[Tensor] | None,
    settings: BlockSettings,
    processes: Processes,
) -> Problem:
    """What the stage's linears, rows stacked, shall be, and the mean of x xᵀ over all tokens of all processes' inputs,
    with its factor where that was needed and will serve again. ValueError when the mean is not finite."""
    share = sharing(stage.feeder, settings)
    grid = settings.grid(f"{block.name}.{stage.linears[0]}")
    known = {"damp_percent": settings.damp_percent, "share": share, "width": settings.width, **grid}
    weight = torch.cat([block.linears[name].weight.detach().float() for name in stage.linears])
    hessian = Hessian(weight.shape[1])
    if wanted is None:
        for x in inputs:
            hessian.update(x)
        return Problem(weight, finished(hessian, processes), **known)
    mismatch = Mismatch(weight)
    for x, x16 in zip(inputs, wanted, strict=True):
        hessian.update(x)
        mismatch.update(x, x16)
    value = finished(hessian, processes)
    moved = processes.mean(mismatch.take(), mismatch.tokens)
    factor = inverse_factor(value, settings.damp_percent)
    target = retarget(weight, factor, moved, settings.mismatch)
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


def fold(block: Block, feeder: Feeder, scale: Tensor, result: QuantizedBlock, settings: BlockSettings) -> None:
    """Divide the feeder by `scale`, in what will be written."""
    if feeder.kind == "norm":
        weight = block.module.get_parameter(f"{feeder.module}.weight")
        result.changed[f"{feeder.module}.weight"] = fold_norm(weight, scale, feeder.offset)
        return
    divisor = per_row(scale, feeder, settings.share, settings.width)
    result.weights[feeder.module] = fold_rows(result.weights[feeder.module], divisor, settings.dtype)
    bias = fold_bias(block.linears[feeder.module], divisor)
    if bias is not None:
        result.changed[f"{feeder.module}.bias"] = bias


def error_rows(
    block: Block, stage: Stage, problem: Problem, solution: Solution, effective: Tensor, seconds: float
) -> list[Row]:
    """A row per linear: its relative output error, and plain rounding's, both tr(ΔW H ΔWᵀ) / tr(W H Wᵀ)."""
    plain = rtn(problem.weight, **problem.grid).dequantize()
    rows, start = [], 0
    for name in stage.linears:
        end = start + block.linears[name].out_features
        weight = problem.weight[start:end]
        total = output_error(weight, problem.hessian) or 1.0
        rows.append(
            {
                "block": block.name,
                "linear": name,
                "error": output_error(effective[start:end] - weight, problem.hessian) / total,
                "rtn_error": output_error(plain[start:end] - weight, problem.hessian) / total,
                "scaled": solution.scale is not None,
                "damp_percent": solution.damp_percent,
                "seconds": round(seconds * (end - start) / len(problem.weight), 3),
            }
        )
        start = end
    return rows


def round_block(block: Block, settings: BlockSettings) -> QuantizedBlock:
    """Plain rounding of every linear: needs no inputs. Errors are those of the weights, ‖ΔW‖² / ‖W‖²."""
    result = QuantizedBlock()
    for name, linear in block.linears.items():
        weight = linear.weight.detach().float()
        result.weights[name] = rtn(weight, **settings.grid(f"{block.name}.{name}"))
        error = (result.weights[name].dequantize() - weight).square().sum() / weight.square().sum().clamp(min=1e-30)
        result.rows.append({"block": block.name, "linear": name, "error": error.item(), "rtn_error": error.item()})
    return result
