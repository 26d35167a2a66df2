"""Where a candidate departs: every block alone, fed with what the reference's block is fed.

With x the reference's input of a block, and u(x) = block(x) - x what the block adds to it,

    error = ‖u_candidate - u_reference‖² / ‖u_reference‖²          gain = ⟨u_candidate, u_reference⟩ / ‖u_reference‖²

each the median over tokens, so that a few massive activations do not speak for all. The same of each linear's output,
its error over all tokens as the record has it; one whose rows may hold the scale of another's columns, as awq's do, is
left out, whatever the method. Rounding scatters around a gain of 1; a wrong scale, a lost zero or a swapped tensor does
not. Nothing that a block gets wrong reaches the next, so a damaged one stands out against the checkpoint's other
blocks.

A block is an outlier where its gain, or the log of its linears' errors over those in the checkpoint's own record
(without a record: of its own error) stands further than OUTLIER robust deviations (1.4826 · median absolute deviation)
from the median of all blocks; an error only above it. So is one with a linear whose gain stands as far from those of
its namesakes in the other blocks: what q_proj gets wrong hardly shows in what the block adds.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from calibration.windows import Windows
from compress.checkpoint.formats import weight_reader
from compress.checkpoint.read import Checkpoint
from compress.core.errors import QCompressError
from compress.evaluate.drift.hidden_states import MICRO_BATCH_TOKENS, Report
from compress.model.blocks import Block, BlockModel

Row = dict[str, Any]
TOKENS = 4096  # that are run through every block: enough to tell
OUTLIER = 12.0  # eight undamaged checkpoints reach 8.7, one with scales 5 % off at least 28
# what is too little to be damage, whatever the scatter: of a block's gain, of a linear's, of a ratio
LEAST_GAIN, LEAST_LINEAR_GAIN, LEAST_ERROR = 0.01, 0.03, 1.25
FURTHEST = 1e9
DEVIATION = 1.4826  # of a normal distribution, in median absolute deviations
Run = Callable[[Tensor], Tensor]
Outputs = dict[str, Tensor]


@torch.no_grad()
def locate_drift(
    reference: Checkpoint, candidate: Checkpoint, windows: Windows, report: Report = lambda row: None
) -> list[Row]:
    """A row per block, in order: block, name, error, gain, excess, linears, linear, score, outlier.

    `linears` are {"name", "error", "gain", "recorded", "score"}, `recorded` from the candidate's record (None without
    one); `excess` is the median of error / recorded over them. `linear` is the name of the one that alone stands out,
    None where the whole block or nothing does. Two blocks are in memory, and the states of TOKENS tokens.
    QCompressError for a candidate whose blocks are not those of the reference.
    """
    ours, theirs = (open_blocks(checkpoint) for checkpoint in (reference, candidate))
    refuse_other_blocks(reference, ours, candidate, theirs)
    ids = windows.ids[: max(1, TOKENS // windows.ids.shape[1])]
    batches = list(ids.split(max(1, MICRO_BATCH_TOKENS // ids.shape[1])))
    with ours.embedding_and_norm():
        states = [ours.embed(part) for part in batches]
    with theirs.embedding_and_norm():
        theirs.prepare((*part.shape,) for part in batches)
    recorded = recorded_errors(candidate)
    rows = []
    for index in range(len(ours)):
        with ours.block(index) as block, theirs.block(index) as twin:
            pair = (block, ours.runner(block, index)), (twin, theirs.runner(twin, index))
            rows.append({"block": index} | compare_blocks(*pair, states, recorded))
    mark_outliers(rows)
    report({"locates": candidate.path.name, "blocks": len(rows), "outliers": sum(row["outlier"] for row in rows)})
    return rows


def open_blocks(checkpoint: Checkpoint) -> BlockModel:
    return BlockModel(checkpoint.config, weight_reader(checkpoint))


def refuse_other_blocks(reference: Checkpoint, ours: BlockModel, candidate: Checkpoint, theirs: BlockModel) -> None:
    (count, width), (blocks, other) = ((len(model), int(model.model.config.hidden_size)) for model in (ours, theirs))
    if (count, width) != (blocks, other):
        raise QCompressError(
            f"{candidate}: has {blocks} blocks of width {other}, {reference} {count} of {width}; blocks are compared "
            "one by one: give the checkpoint it was quantized from as the reference"
        )


def compare_blocks(
    ours: tuple[Block, Run], theirs: tuple[Block, Run], states: list[Tensor], recorded: dict[tuple[str, str], float]
) -> Row:
    """Error and gain of a block and its linears. `states` become the reference's outputs."""
    block, twin = ours[0], theirs[0]
    names = [name for name in block.linears if name in twin.linears and name not in row_feeders(block)]
    errors, gains = [], []
    sums: dict[str, list[Tensor]] = {name: [] for name in names}
    for number, state in enumerate(states):
        with watch_outputs(block, names) as wanted:
            output = ours[1](state)
        with watch_outputs(twin, names) as found:
            update, other = output - state, theirs[1](state) - state
        energy = update.square().sum(-1).clamp(min=1e-30)
        errors.append(((other - update).square().sum(-1) / energy).flatten())
        gains.append(((other * update).sum(-1) / energy).flatten())
        for name in names:
            sums[name].append(token_sums(wanted[name], found[name]))
        states[number] = output
    linears = [linear_row(name, torch.cat(sums[name]), recorded.get((block.name, name))) for name in names]
    excess = [row["error"] / row["recorded"] for row in linears if row["recorded"]]
    return {
        "name": block.name,
        "error": torch.cat(errors).median().item(),
        "gain": torch.cat(gains).median().item(),
        "excess": median(excess) if excess else None,
        "linears": linears,
    }


def row_feeders(block: Block) -> set[str]:
    """Linears whose rows may hold the scale of another's columns."""
    feeders = [stage.feeder for stage in block.stages or () if stage.feeder is not None]
    return {feeder.module for feeder in feeders if feeder.kind != "norm"}


@contextmanager
def watch_outputs(block: Block, names: Sequence[str]) -> Iterator[Outputs]:
    """While open, what these linears of a block give out, by name."""
    outputs: Outputs = {}

    def watch(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def note(module: nn.Module, inputs: Any, output: Tensor) -> None:
            outputs[name] = output

        return note

    handles = [block.linears[name].register_forward_hook(watch(name)) for name in names]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def token_sums(wanted: Tensor, found: Tensor) -> Tensor:
    """(tokens, 3) float64 of (batch, seq, out) outputs: ‖found - wanted‖², ⟨found, wanted⟩, ‖wanted‖² of each token."""
    sums = (found - wanted).square().sum(-1), (found * wanted).sum(-1), wanted.square().sum(-1)
    return torch.stack(sums, dim=-1).flatten(end_dim=-2).double()


def linear_row(name: str, sums: Tensor, recorded: float | None) -> Row:
    """Of (tokens, 3) sums: the error over all tokens, the median of their gains."""
    error, _, energy = sums.sum(0).tolist()
    gain = (sums[:, 1] / sums[:, 2].clamp(min=1e-30)).median().item()
    return {"name": name, "error": error / max(energy, 1e-30), "gain": gain, "recorded": recorded}


def recorded_errors(checkpoint: Checkpoint) -> dict[tuple[str, str], float]:
    """The error of every linear when it was quantized, by block and local name; {} without a record of them."""
    rows = [row for row in checkpoint.record.get("rows") or () if {"block", "linear", "error"} <= row.keys()]
    return {(row["block"], row["linear"]): row["error"] for row in rows}


def mark_outliers(rows: list[Row]) -> None:
    """Give each row its `score`, the largest of its robust deviations, and say whether it is an `outlier`.

    `linear` is named where it alone makes the row one.
    """
    score_linears(rows)
    scores = [[abs(apart) for apart in deviations([row["gain"] for row in rows], least=LEAST_GAIN)]]
    known = all(row["excess"] for row in rows)
    errors = [row["excess"] if known else max(row["error"], 1e-12) for row in rows]
    scores.append(deviations([math.log(error) for error in errors], least=math.log(LEAST_ERROR)))
    for row, *found in zip(rows, *scores, strict=True):
        worst = max(row["linears"], key=lambda linear: linear["score"], default=None)
        alone = worst is not None and worst["score"] > OUTLIER >= max(found)
        row["linear"] = worst["name"] if worst is not None and alone else None
        row["score"] = max(*found, *(linear["score"] for linear in row["linears"]))
        row["outlier"] = row["score"] > OUTLIER


def score_linears(rows: list[Row]) -> None:
    """Give each linear its `score`: how far its gain is from those of its namesakes, in robust deviations."""
    namesakes: dict[str, list[Row]] = {}
    for row in rows:
        for linear in row["linears"]:
            namesakes.setdefault(linear["name"], []).append(linear)
    for linears in namesakes.values():
        apart = deviations([linear["gain"] for linear in linears], least=LEAST_LINEAR_GAIN)
        for linear, distance in zip(linears, apart, strict=True):
            linear["score"] = abs(distance)


def deviations(values: Sequence[float], *, least: float) -> list[float]:
    """How far each is above the median, in robust deviations: 0 where that is less than `least`, FURTHEST where a value
    is not finite. The scatter of values that hardly differ is taken for `least` / OUTLIER."""
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    centre = median(finite)
    scatter = max(DEVIATION * median([abs(value - centre) for value in finite]), least / OUTLIER)
    return [deviation(value - centre, scatter, least) for value in values]


def deviation(apart: float, scatter: float, least: float) -> float:
    if not math.isfinite(apart):
        return FURTHEST
    return apart / scatter if abs(apart) >= least else 0.0
