"""Locate drift: run each block alone on the reference's inputs, and find the blocks that differ from the rest.

Let x be the reference's input of a block, and u(x) = block(x) - x the block's update. Two figures compare the updates:

    error = ‖u_candidate - u_reference‖² / ‖u_reference‖²          gain = ⟨u_candidate, u_reference⟩ / ‖u_reference‖²

Both are medians over tokens, so that a few massive activations do not dominate. Each linear has the same two figures
for its output, but its error is a mean over all tokens, as in the checkpoint's record. AWQ may fold the column scales
of one linear into the rows of another; such rows are not compared. Rounding leaves every gain near 1. A wrong scale, a
lost zero or a swapped tensor moves a gain away from 1. Each block gets the reference's input, so errors never add up
from block to block.

The score of a value is its distance from the median of all blocks, in robust deviations (1.4826 · median absolute
deviation). A block is an outlier if one of these scores exceeds OUTLIER:

    gain      the block's gain, among all blocks
    error     the log of (error / recorded error), as a median over the block's linears; without a record, the log of
              the block's error. Blocks below the median have no such score
    linears   the gain of a linear, among the linears of the same name

The last score detects a damaged q_proj, which hardly changes the block's update.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from calibration.windows import Windows
from compress.checkpoint.formats import weight_reader
from compress.checkpoint.read import Checkpoint
from compress.core.errors import QCompressError
from compress.core.rows import BlockRow, LinearRow
from compress.evaluate.drift.hidden_states import MICRO_BATCH_TOKENS, Report
from compress.model.blocks import Block, BlockModel

TOKENS = 4096  # tokens that run through each block: enough to separate damage from rounding
OUTLIER = 12.0  # eight undamaged checkpoints reach 8.7, one with scales 5 % off at least 28
# smaller deviations never count: of a block's gain, of a linear's gain, of a ratio of errors
LEAST_GAIN, LEAST_LINEAR_GAIN, LEAST_ERROR = 0.01, 0.03, 1.25
NOT_FINITE = 1e9  # score of NaN and Inf
DEVIATION = 1.4826  # a normal distribution's standard deviation over its median absolute deviation
Run = Callable[[Tensor], Tensor]
Outputs = dict[str, Tensor]


class Side(NamedTuple):
    """A block of the reference or of the candidate, and the function that runs the block."""

    block: Block
    run: Run


@torch.no_grad()
def locate_drift(
    reference: Checkpoint,
    candidate: Checkpoint,
    windows: Windows,
    report: Report = lambda row: None,
    *,
    device: str = "cpu",
) -> list[BlockRow]:
    """One row per block, in order. Two blocks and the hidden states of TOKENS tokens are in memory at a time.

    Raises QCompressError if the two models differ in the number or the width of their blocks.
    """
    model, candidate_model = open_blocks(reference, device), open_blocks(candidate, device)
    check_same_blocks(reference, model, candidate, candidate_model)
    ids = windows.ids[: max(1, TOKENS // windows.ids.shape[1])]
    batches = list(ids.split(max(1, MICRO_BATCH_TOKENS // ids.shape[1])))
    with model.embedding_and_norm():
        states = [model.embed(part) for part in batches]
    with candidate_model.embedding_and_norm():
        candidate_model.prepare((part.shape[0], part.shape[1]) for part in batches)
    recorded = recorded_errors(candidate)
    rows: list[BlockRow] = []
    for index in range(len(model)):
        with model.block(index) as block, candidate_model.block(index) as other:
            sides = Side(block, model.runner(block, index)), Side(other, candidate_model.runner(other, index))
            row, states = compare_blocks(index, *sides, states, recorded)
            rows.append(row)
    rows = score_blocks(rows)
    report({"locates": candidate.path.name, "blocks": len(rows), "outliers": sum(row["outlier"] for row in rows)})
    return rows


def open_blocks(checkpoint: Checkpoint, device: str) -> BlockModel:
    return BlockModel(checkpoint.config, weight_reader(checkpoint), device=device)


def check_same_blocks(reference: Checkpoint, model: BlockModel, candidate: Checkpoint, other: BlockModel) -> None:
    """Raises QCompressError if the two models differ in the number or the width of their blocks."""
    (count, width), (blocks, size) = ((len(one), int(one.model.config.hidden_size)) for one in (model, other))
    if (count, width) != (blocks, size):
        raise QCompressError(
            f"{candidate}: the model has {blocks} blocks of width {size}, but {reference} has {count} of width "
            f"{width}; --locate compares block by block, so REFERENCE must be the checkpoint that was quantized"
        )


def compare_blocks(
    index: int, reference: Side, candidate: Side, states: Sequence[Tensor], recorded: dict[tuple[str, str], float]
) -> tuple[BlockRow, list[Tensor]]:
    """The row of one block, and the reference's outputs, which are the inputs of the next block.

    `states` are the reference's inputs of this block. `recorded` maps (block, linear) to the error in the record.
    """
    block, other = reference.block, candidate.block
    names = [name for name in block.linears if name in other.linears and name not in row_feeders(block)]
    errors, gains, outputs = [], [], []
    sums: dict[str, list[Tensor]] = {name: [] for name in names}
    for state in states:
        with watch_outputs(block, names) as targets:
            output = reference.run(state)
        with watch_outputs(other, names) as measured:
            update, candidate_update = output - state, candidate.run(state) - state
        energy = update.square().sum(-1).clamp(min=1e-30)
        errors.append(((candidate_update - update).square().sum(-1) / energy).flatten())
        gains.append(((candidate_update * update).sum(-1) / energy).flatten())
        for name in names:
            sums[name].append(token_sums(targets[name], measured[name]))
        outputs.append(output)
    linears = [linear_row(name, torch.cat(sums[name]), recorded.get((block.name, name))) for name in names]
    excess = [row["error"] / row["recorded"] for row in linears if row["recorded"]]
    row: BlockRow = {
        "block": index,
        "name": block.name,
        "error": torch.cat(errors).median().item(),
        "gain": torch.cat(gains).median().item(),
        "excess": median(excess) if excess else None,
        "linears": linears,
    }
    return row, outputs


def row_feeders(block: Block) -> set[str]:
    """The names of all linears whose rows AWQ may have scaled, to cancel the column scales of another linear."""
    feeders = [stage.feeder for stage in block.stages or () if stage.feeder is not None]
    return {feeder.module for feeder in feeders if feeder.kind != "norm"}


@contextmanager
def watch_outputs(block: Block, names: Sequence[str]) -> Iterator[Outputs]:
    """A context that records the latest output of each of these linears of a block, by name."""
    outputs: Outputs = {}

    def watch(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def store(module: nn.Module, inputs: Any, output: Tensor) -> None:
            outputs[name] = output

        return store

    handles = [block.linears[name].register_forward_hook(watch(name)) for name in names]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def token_sums(target: Tensor, measured: Tensor) -> Tensor:
    """For each token ‖measured - target‖², ⟨measured, target⟩ and ‖target‖², (tokens, 3) float64.

    The outputs `target` and `measured` are (batch, seq, out).
    """
    sums = (measured - target).square().sum(-1), (measured * target).sum(-1), target.square().sum(-1)
    return torch.stack(sums, dim=-1).flatten(end_dim=-2).double()


def linear_row(name: str, sums: Tensor, recorded: float | None) -> LinearRow:
    """The row of a linear: its error over all tokens and its median gain. `sums` is the result of `token_sums`."""
    error, _, energy = sums.sum(0).tolist()
    gain = (sums[:, 1] / sums[:, 2].clamp(min=1e-30)).median().item()
    return {"name": name, "error": error / max(energy, 1e-30), "gain": gain, "recorded": recorded}


def recorded_errors(checkpoint: Checkpoint) -> dict[tuple[str, str], float]:
    """The error of each linear in the checkpoint's record, by block and local name; {} if it has no record."""
    rows = [row for row in checkpoint.record.get("rows") or () if {"block", "linear", "error"} <= row.keys()]
    return {(row["block"], row["linear"]): row["error"] for row in rows}


def score_blocks(rows: Sequence[BlockRow]) -> list[BlockRow]:
    """The rows with three new keys: `score`, `outlier`, and `linear`.

    `linear` names the outlier if exactly one linear of the block is an outlier; otherwise it is None.
    """
    gains = [abs(score) for score in deviations([row["gain"] for row in rows], least=LEAST_GAIN)]
    excesses = [row["excess"] for row in rows]
    errors = [excess for excess in excesses if excess]
    if len(errors) < len(rows):
        errors = [max(row["error"], 1e-12) for row in rows]
    errors = deviations([math.log(error) for error in errors], least=math.log(LEAST_ERROR))
    scored = zip(rows, score_linears(rows), gains, errors, strict=True)
    return [score_block(row, linears, max(gain, error)) for row, linears, gain, error in scored]


def score_block(row: BlockRow, linears: list[LinearRow], score: float) -> BlockRow:
    """One row of `score_blocks`.

    `linears` are the block's linears with their scores. `score` is the score of the block's update.
    """
    worst = max(linears, key=lambda linear: linear["score"], default=None)
    highest = score if worst is None else max(score, worst["score"])
    linear = worst["name"] if worst is not None and worst["score"] > OUTLIER >= score else None
    return {**row, "linears": linears, "linear": linear, "score": highest, "outlier": highest > OUTLIER}


def score_linears(rows: Sequence[BlockRow]) -> list[list[LinearRow]]:
    """The linears of every block, with a new key `score`.

    The score is the distance of a linear's gain from the median gain of all linears with its name, in robust
    deviations.
    """
    gains: dict[str, list[float]] = {}
    for row in rows:
        for linear in row["linears"]:
            gains.setdefault(linear["name"], []).append(linear["gain"])
    scores = {name: iter(deviations(values, least=LEAST_LINEAR_GAIN)) for name, values in gains.items()}
    return [[{**linear, "score": abs(next(scores[linear["name"]]))} for linear in row["linears"]] for row in rows]


def deviations(values: Sequence[float], *, least: float) -> list[float]:
    """The distance of each value from the median, in robust deviations. Values above the median are positive.

    A distance below `least` becomes 0. A value that is not finite becomes NOT_FINITE. The robust deviation is at least
    `least` / OUTLIER.
    """
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    centre = median(finite)
    scatter = max(DEVIATION * median([abs(value - centre) for value in finite]), least / OUTLIER)
    return [deviation(value - centre, scatter, least) for value in values]


def deviation(distance: float, scatter: float, least: float) -> float:
    if not math.isfinite(distance):
        return NOT_FINITE
    return distance / scatter if abs(distance) >= least else 0.0
