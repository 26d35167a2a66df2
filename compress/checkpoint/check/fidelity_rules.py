"""Rule T12: the codes represent the source weights. No loader checks this: swapped nibbles load without an error.

`code_rules.py` has what T12 checks without a source. With one, every packed weight W' is compared with its source W.
AWQ scales input channels and outputs, so W' ≈ t · W · s is fitted first, with one s per input and one t per output. The
fit is exact for AWQ and has too few parameters to hide a wrong layout. The rest is rounding error. Measured on
SmolLM2-135M, groups of 64:

                                   rtn, awq    gptq, 16 windows    wrong nibble order    zeros off by one
    cosine of the whole weight     ≥ 0.991     ≥ 0.953             ≤ 0.61                0.91 – 0.95
    of the worst position          ≥ 0.990     ≥ 0.785             ≤ 0.37                0.88 – 0.95
    cosine of the worst output     ≥ 0.97      ≥ 0.38              ≤ 0.45                0.73 – 0.93
    mean error in steps            ≤ 0.01      ≤ 0.035             ≤ 0.02                0.97 – 1.00
    gain of a group                0.88–1.14   0.41–1.75           any                   0.64 – 1.31

A position is every eighth input or output: 8 codes share a word, and a wrong layout mixes up their order. A gain is the
factor between W' and the fit. A low cosine of a position is an error. A low cosine of one output, or an unusual gain of
one group, is only a warning, because gptq can move small weights far. Only an output with a cosine below
LOST_ROW_COSINE is an error. At most ROWS random outputs of a weight are compared, since a wrong layout affects all.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from compress.checkpoint.check.candidate import Candidate, Finding, Findings, error, warning
from compress.checkpoint.check.code_rules import NOISE
from compress.checkpoint.check.factors import group_totals, ratio
from compress.checkpoint.formats import quantized_as, weight_reader
from compress.core.grid import QuantizedWeight, away_from_zero

ROWS, WORD = 1024, 8
LEAST_COSINE, LEAST_ROW_COSINE, MOST_SHIFT = 0.5, 0.3, 0.25
LOST_ROW_COSINE = 0.15
GAINS = (0.4, 1.9)  # of a group, against the median of its output
UNUSUAL = "vLLM loads it; rounding alone rarely causes this, error correction can"


def codes_match_source(candidate: Candidate) -> Findings:
    """T12: packed weights match the source."""
    if candidate.source is None or candidate.format is None:
        return
    read = weight_reader(candidate.source)
    for name, _, scheme in candidate.sound():
        weight, tensor = quantized_as(candidate.checkpoint, name, scheme), f"{name}.{candidate.format.packed}"
        rows = sample(len(weight.codes))
        weight = replace(weight, codes=weight.codes[rows], scales=weight.scales[rows], zeros=weight.zeros[rows])
        if not torch.isfinite(weight.scales).all():
            continue  # T7
        source = read(f"{candidate.source_name(name)}.weight")
        yield from (finding | {"tensor": tensor} for finding in source_differences(weight, source, rows))


def sample(count: int) -> Tensor:
    """The indices of at most ROWS out of `count` rows, in order, the same every time."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))[:ROWS].sort().values


def source_differences(weight: QuantizedWeight, source: Tensor, rows: Tensor) -> Iterator[Finding]:
    """Findings for differences between `rows` of a weight and the source that rounding and AWQ cannot explain."""
    if source.shape[1] != weight.codes.shape[1] or len(source) <= int(rows.max()):
        yield error(f"{weight.codes.shape[1]} inputs", f"{list(source.shape)}, as in the source", NOISE)
        return
    similarity = measure_similarity(weight, source[rows].float(), rows)
    if similarity.cosine < LEAST_COSINE:
        yield error(
            f"cosine {similarity.cosine:.3f} to the source in {similarity.place}", f"at least {LEAST_COSINE}", NOISE
        )
    elif similarity.row_cosine < LEAST_ROW_COSINE:
        where = f"cosine {similarity.row_cosine:.3f} to the source in output {int(rows[similarity.row])}"
        row = error if similarity.row_cosine < LOST_ROW_COSINE else warning
        yield row(where, f"at least {LEAST_ROW_COSINE}", UNUSUAL)
    if abs(similarity.shift) > MOST_SHIFT:
        yield error(f"{similarity.shift:.2f} steps off the source on average", f"at most {MOST_SHIFT}", NOISE)
    low, high = similarity.gains
    if low < GAINS[0] or high > GAINS[1]:
        yield warning(f"groups of {low:.2f} to {high:.2f} times the source", f"{GAINS[0]} to {GAINS[1]}", UNUSUAL)


@dataclass(frozen=True)
class Similarity:
    """The similarity of a packed weight to its source.

    `cosine` is the lowest cosine of the positions in a word, and `place` names this position. `row_cosine` is the
    lowest cosine of an output, and `row` its index. `shift` is the mean error in steps. `gains` are the lowest and the
    highest gain of a group.
    """

    cosine: float
    place: str
    row_cosine: float
    row: int
    shift: float
    gains: tuple[float, float]


def measure_similarity(weight: QuantizedWeight, source: Tensor, rows: Tensor) -> Similarity:
    """The similarity of (out, in) weights after fitting one factor per input and one per output.

    `rows` (out,) are the indices of the outputs in the full weight.
    """
    stored, size = weight.dequantize(), weight.group_size
    products, energies, squares = stored * source, source.square(), stored.square()
    per_output, ones = torch.ones(len(stored)), torch.ones(stored.shape[1])
    for _ in range(2):
        per_input = ratio(per_output @ products, per_output.square() @ energies)
        energy = group_totals(energies, per_input.square(), size)
        gains = ratio(group_totals(products, per_input, size), energy)
        per_output = gains.median(1).values
    relative = torch.where(energy > 1e-3 * energy.mean(1, keepdim=True), ratio(gains, per_output[:, None]), 1.0)
    outputs = torch.stack([products @ per_input * per_output, squares.sum(1), energies @ per_input**2 * per_output**2])
    inputs = torch.stack([per_output @ products * per_input, squares.sum(0), per_output**2 @ energies * per_input**2])
    single = cosines(outputs)
    errors = group_totals(stored, ones, size) - group_totals(source, per_input, size) * per_output[:, None]
    shift = (errors / away_from_zero(weight.scales)).mean() / size
    columns = torch.arange(stored.shape[1])
    cosine, place = min(worst_place(outputs, rows, "outputs"), worst_place(inputs, columns, "inputs"))
    gains_seen = relative.min().item(), relative.max().item()
    return Similarity(cosine, place, single.min().item(), int(single.argmin()), shift.item(), gains_seen)


def worst_place(products: Tensor, numbers: Tensor, what: str) -> tuple[float, str]:
    """The lowest cosine over every eighth input or output, and the text that names these inputs or outputs."""
    places = torch.zeros(3, WORD).index_add_(1, numbers % WORD, products)
    lowest = cosines(places)
    return lowest.min().item(), f"{what} {int(lowest.argmin())} of every {WORD}"


def cosines(products: Tensor) -> Tensor:
    """Cosines from (3, n) sums of a·b, a² and b²; 1 where a or b is all zeros."""
    return ratio(products[0], products[1].sqrt() * products[2].sqrt())
