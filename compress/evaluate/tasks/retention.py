"""Retention: what part of the reference's task score a candidate keeps, in %, with a paired bootstrap interval.

    retention = 100 · mean(candidate) / mean(reference)

over the same items. The interval is the middle 95 % of `DRAWS` redraws of the items (Efron, 1979), both checkpoints'
scores drawn together: what both find hard cancels. Where the reference scores nothing there is no retention: None.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
DRAWS = 2000
TAILS = (2.5, 97.5)


@dataclass(frozen=True)
class Retention:
    """In %: the value and its interval; None where the reference scores nothing, the interval also where a kind has one
    item. `items`: how many were compared."""

    value: float | None
    low: float | None
    high: float | None
    items: int


def retention_by_kind(
    reference: Mapping[str, Sequence[float | None]],
    candidate: Mapping[str, Sequence[float | None]],
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> tuple[dict[str, Retention], Retention]:
    """Retention of every kind, and the mean over the kinds that have one.

    Scores are 0 to 1, item by item in the same order; None, a scorer's error, leaves the item out for both.
    """
    generator = np.random.default_rng(seed)
    kinds: dict[str, Retention] = {}
    drawn: list[Values] = []
    for kind in reference:
        ours, theirs = paired(reference[kind], candidate[kind])
        ratios = redraw(ours, theirs, draws, generator)
        kinds[kind] = _estimate(ratio(ours, theirs), ratios, len(ours))
        if kinds[kind].value is not None:
            drawn.append(ratios)
    values = [found.value for found in kinds.values() if found.value is not None]
    mean = float(np.mean(values)) if values else None
    total = sum(found.items for found in kinds.values())
    return kinds, _estimate(mean, np.mean(drawn, axis=0) if drawn else np.empty(0), total)


def paired(reference: Sequence[float | None], candidate: Sequence[float | None]) -> tuple[Values, Values]:
    """Both scores of the items that both have one for, each (items,)."""
    pairs = [pair for pair in zip(reference, candidate, strict=True) if None not in pair]
    both = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    return both[:, 0], both[:, 1]


def ratio(reference: Values, candidate: Values) -> float | None:
    """100 · mean / mean, None without items or where the reference's mean is 0."""
    return float(100 * candidate.sum() / reference.sum()) if reference.sum() > 0 else None


def redraw(reference: Values, candidate: Values, draws: int, generator: np.random.Generator) -> Values:
    """(draws,) retention in % of items drawn with replacement, NaN where the reference's drawn items score nothing, and
    of a single item, which has no scatter."""
    if len(reference) < 2:
        return np.full(draws, np.nan)
    picks = generator.integers(len(reference), size=(draws, len(reference)))
    below = reference[picks].sum(axis=1)
    return 100 * candidate[picks].sum(axis=1) / np.where(below > 0, below, np.nan)


def _estimate(value: float | None, ratios: Values, items: int) -> Retention:
    known = ratios[np.isfinite(ratios)]
    if value is None or not len(known):
        return Retention(value, None, None, items)
    low, high = np.percentile(known, TAILS)
    return Retention(value, float(low), float(high), items)
