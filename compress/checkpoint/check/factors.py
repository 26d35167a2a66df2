"""The factors between the packed linears of a stage and their source: W' ≈ t · W · s.

W is the source and W' the packed weight. s is one factor per input, the same for all linears of the stage; t is one
factor per output. Both are least-squares fits over all weights, ROWS rows at a time. AWQ multiplies the weights of an
input by s, and divides the output that feeds the input by s, so the two cancel. Only outputs that feed a later stage
have a factor t. The other outputs determine s.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.core.grid import QuantizedWeight, away_from_zero, split_groups

ROWS = 1024


@dataclass(frozen=True)
class Pair:
    """A packed linear and its source (out, in). The last `feeding` outputs feed a later stage and may have a t."""

    name: str
    weight: QuantizedWeight
    source: Tensor
    feeding: int = 0

    @property
    def free(self) -> int:
        """The number of outputs that feed no later stage. They come first and have no factor t."""
        return len(self.source) - self.feeding

    def pieces(self, end: int) -> Iterator[tuple[slice, QuantizedWeight, Tensor]]:
        """(rows, packed weight, float32 source) of the outputs up to `end`, at most ROWS at a time."""
        for start in range(0, end, ROWS):
            rows = slice(start, min(start + ROWS, end))
            yield rows, self.weight.rows(rows.start, rows.stop), self.source[rows].float()


@dataclass(frozen=True)
class Factors:
    """The factors of one linear: `outputs` (out,) is t, and `groups` (out, groups) are the factors of the groups.

    `energy` is the energy of each group, and `furthest` its largest error in steps, both (out, groups).
    """

    outputs: Tensor
    groups: Tensor
    energy: Tensor
    furthest: Tensor


@dataclass(frozen=True)
class InputFactors:
    """The factors s of the inputs, and the energies of the source's columns, both (in,).

    `cosines` (in,) compare the column of each input with its source. The cosine of a column of zeros is 0.
    """

    factors: Tensor
    energy: Tensor
    cosines: Tensor


def fit_inputs(pairs: Sequence[Pair]) -> InputFactors:
    """The factor of every input, fitted on the outputs without a factor t; 1 if the source's column is 0."""
    sums = torch.zeros(3, pairs[0].source.shape[1])
    for pair in pairs:
        for _, weight, source in pair.pieces(pair.free):
            stored = weight.dequantize()
            sums += torch.stack([(stored * source).sum(0), source.square().sum(0), stored.square().sum(0)])
    cosines = sums[0] / (sums[1] * sums[2]).sqrt().clamp(min=1e-12)
    return InputFactors(ratio(sums[0], sums[1]), sums[1], cosines)


def fit_outputs(pair: Pair, inputs: Tensor, counted: Tensor, *, measure_steps: bool) -> Factors:
    """The factors of one linear whose inputs have the factors `inputs` (in,). Inputs with `counted` 0 are left out.

    `furthest` is measured only with `measure_steps`, and is 0 otherwise.
    """
    parts: list[Factors] = []
    for _, weight, source in pair.pieces(len(pair.source)):
        stored, size = weight.dequantize(), weight.group_size
        products = group_totals(stored * source, inputs * counted, size)
        energies = group_totals(source.square(), inputs.square() * counted, size)
        outputs = ratio(products.sum(1), energies.sum(1))
        groups, energy = ratio(products, energies * outputs[:, None]), energies * outputs[:, None].square()
        steps = largest_step(weight, stored - source * inputs) if measure_steps else torch.zeros_like(energy)
        parts.append(Factors(outputs, groups, energy, steps))
    return Factors(
        *(torch.cat([getattr(part, name) for part in parts]) for name in ("outputs", "groups", "energy", "furthest"))
    )


def group_totals(values: Tensor, per_input: Tensor, group_size: int) -> Tensor:
    """The sums over each group of `values` (out, in) times one factor per input, (out, groups)."""
    return torch.einsum("ogi,gi->og", split_groups(values, group_size), split_groups(per_input, group_size))


def largest_step(weight: QuantizedWeight, errors: Tensor) -> Tensor:
    """The largest error of each group in steps, (out, groups). Lowest and highest codes are left out: they may clip."""
    inner = (weight.codes > 0) & (weight.codes < 2**weight.bits - 1)
    steps = split_groups(errors * inner, weight.group_size) / away_from_zero(weight.scales)[..., None]
    return steps.abs().amax(-1)


def ratio(above: Tensor, below: Tensor) -> Tensor:
    """above / below; 1 where `below` is 0."""
    return torch.where(below == 0, torch.ones_like(above), above / below)
