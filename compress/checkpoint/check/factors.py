"""The factors between the packed linears of a stage and their source: W' ≈ t · W · s.

s is one factor per input, the same for all linears of the stage; t is one per output. Both are least-squares fits over
all numbers, in pieces of ROWS rows. AWQ multiplies inputs by s and divides what feeds them, so s and the feeder cancel.
Only outputs that feed a later stage have a t; s is fitted without them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.core.grid import QuantizedWeight, away_from_zero, split_groups

ROWS = 1024


@dataclass(frozen=True)
class Pair:
    """A packed linear and its (out, in) source. The last `feeding` outputs feed a later stage, so they may have a t."""

    name: str
    weight: QuantizedWeight
    source: Tensor
    feeding: int = 0

    @property
    def free(self) -> int:
        """The number of outputs without a factor of their own; all outputs if every one feeds a stage."""
        return len(self.source) - self.feeding

    def pieces(self, end: int) -> Iterator[tuple[slice, QuantizedWeight, Tensor]]:
        """(rows, packed weight, float32 source) of the outputs up to `end`, at most ROWS at a time."""
        for start in range(0, end, ROWS):
            rows = slice(start, min(start + ROWS, end))
            yield rows, self.weight.rows(rows.start, rows.stop), self.source[rows].float()


@dataclass(frozen=True)
class Factors:
    """Of one linear: t (out,); of every group (out, groups) its factor, its energy, and its largest error in steps."""

    outputs: Tensor
    groups: Tensor
    energy: Tensor
    furthest: Tensor


@dataclass(frozen=True)
class InputFactors:
    """s (in,), the energy (in,) of the source, and the cosine (in,) of every input's column with it; 0 for zeros."""

    factors: Tensor
    energy: Tensor
    cosines: Tensor


def fit_inputs(pairs: Sequence[Pair]) -> InputFactors:
    """The factor of every input over the outputs without a t; 1 where the source is 0."""
    sums = torch.zeros(3, pairs[0].source.shape[1])
    for pair in pairs:
        for _, weight, source in pair.pieces(pair.free):
            stored = weight.dequantize()
            sums += torch.stack([(stored * source).sum(0), source.square().sum(0), stored.square().sum(0)])
    cosines = sums[0] / (sums[1] * sums[2]).sqrt().clamp(min=1e-12)
    return InputFactors(ratio(sums[0], sums[1]), sums[1], cosines)


def fit_outputs(pair: Pair, inputs: Tensor) -> Factors:
    """The factors of one linear whose inputs have the factors `inputs` (in,)."""
    parts: list[Factors] = []
    for _, weight, source in pair.pieces(len(pair.source)):
        stored, fitted = weight.dequantize(), source * inputs
        outputs = ratio((stored * fitted).sum(1), fitted.square().sum(1))
        steps = largest_step(weight, stored - fitted)
        fitted = fitted * outputs[:, None]
        ours, theirs = (split_groups(one, weight.group_size) for one in (stored, fitted))
        energy = theirs.square().sum(-1)
        parts.append(Factors(outputs, ratio((ours * theirs).sum(-1), energy), energy, steps))
    return Factors(
        *(torch.cat([getattr(part, name) for part in parts]) for name in ("outputs", "groups", "energy", "furthest"))
    )


def largest_step(weight: QuantizedWeight, errors: Tensor) -> Tensor:
    """(out, groups): the largest error in steps. The lowest and the highest code are left out: rounding clips there."""
    inner = (weight.codes > 0) & (weight.codes < 2**weight.bits - 1)
    steps = split_groups(errors * inner, weight.group_size) / away_from_zero(weight.scales)[..., None]
    return steps.abs().amax(-1)


def ratio(above: Tensor, below: Tensor) -> Tensor:
    """above / below; 1 where `below` is 0."""
    return torch.where(below == 0, torch.ones_like(above), above / below)
