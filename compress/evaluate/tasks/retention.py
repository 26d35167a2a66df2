"""Retention: a candidate's task score over the reference's, in %, with a paired bootstrap interval.

    retention = 100 · mean(candidate) / mean(reference)

over the same items. The interval is the middle 95 % of `DRAWS` bootstrap samples of the items (Efron, 1979). Both
checkpoints use the same samples, so items that are hard for both cancel. Retention is None if the reference scores 0.
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
    """Value and interval in %; None if the reference scores 0. A single item has no interval. `items` is a count."""

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
    """Retention of every kind, and the mean over the kinds with a retention.

    Scores are 0 to 1, in the same order of items. None, a scorer's error, leaves out the item for both checkpoints.
    """
    generator = np.random.default_rng(seed)
    kinds: dict[str, Retention] = {}
    drawn: list[Values] = []
    for kind in reference:
        before, after = paired(reference[kind], candidate[kind])
        ratios = redraw(before, after, draws, generator)
        kinds[kind] = _estimate(ratio(before, after), ratios, len(before))
        if kinds[kind].value is not None:
            drawn.append(ratios)
    values = [retention.value for retention in kinds.values() if retention.value is not None]
    mean = float(np.mean(values)) if values else None
    total = sum(retention.items for retention in kinds.values())
    return kinds, _estimate(mean, np.mean(drawn, axis=0) if drawn else np.empty(0), total)


def paired(reference: Sequence[float | None], candidate: Sequence[float | None]) -> tuple[Values, Values]:
    """The scores of both checkpoints, each (items,), for the items that have both."""
    pairs = [pair for pair in zip(reference, candidate, strict=True) if None not in pair]
    both = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    return both[:, 0], both[:, 1]


def ratio(reference: Values, candidate: Values) -> float | None:
    """100 · mean / mean; None without items or if the reference's mean is 0."""
    return float(100 * candidate.sum() / reference.sum()) if reference.sum() > 0 else None


def redraw(reference: Values, candidate: Values, draws: int, generator: np.random.Generator) -> Values:
    """(draws,) retention in % of items drawn with replacement.

    NaN if the reference scores 0 on the drawn items, and for a single item, which has no spread.
    """
    if len(reference) < 2:
        return np.full(draws, np.nan)
    picks = generator.integers(len(reference), size=(draws, len(reference)))
    total = reference[picks].sum(axis=1)
    return 100 * candidate[picks].sum(axis=1) / np.where(total > 0, total, np.nan)


def _estimate(value: float | None, ratios: Values, items: int) -> Retention:
    finite = ratios[np.isfinite(ratios)]
    if value is None or not len(finite):
        return Retention(value, None, None, items)
    low, high = np.percentile(finite, TAILS)
    return Retention(value, float(low), float(high), items)
