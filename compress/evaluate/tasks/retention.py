"""Retention: a candidate's task score over the reference's, in %, with the interval of a ratio of paired scores.

    retention = 100 · mean(candidate) / mean(reference)

Both means are over the same items, so the difficulty of items cancels. Retention is None if the reference scores 0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compress.core.proportion import Bounds, mean_interval, ratio_interval

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Retention:
    """A retention and its 95 % interval, in %. Both are None if the reference scores 0. `items` counts scored items."""

    value: float | None
    low: float | None
    high: float | None
    items: int


def retention_by_kind(
    reference: Mapping[str, Sequence[float | None]], candidate: Mapping[str, Sequence[float | None]]
) -> tuple[dict[str, Retention], Retention]:
    """The retention of each kind, and the mean over all kinds that have a retention.

    Scores are 0 to 1, in the same order of items for both checkpoints. A score of None is a scorer's error; the item is
    then left out for both.
    """
    kinds = {kind: retention(*paired(reference[kind], candidate[kind])) for kind in reference}
    return kinds, mean_retention(list(kinds.values()))


def retention(reference: Values, candidate: Values) -> Retention:
    """The retention of paired scores. `reference` and `candidate` are (items,), in the same order of items."""
    if not reference.sum() > 0:
        return Retention(None, None, None, len(reference))
    low, high = ratio_interval(reference.tolist(), candidate.tolist())
    return Retention(float(100 * candidate.sum() / reference.sum()), 100 * low, 100 * high, len(reference))


def mean_retention(kinds: Sequence[Retention]) -> Retention:
    """The mean over all kinds that have a retention. `items` of the result counts the items of all kinds."""
    items, values, bounds = sum(kind.items for kind in kinds), list[float](), list[Bounds]()
    for kind in kinds:
        if kind.value is not None and kind.low is not None and kind.high is not None:
            values.append(kind.value)
            bounds.append((kind.low, kind.high))
    if not values:
        return Retention(None, None, None, items)
    return Retention(float(np.mean(values)), *mean_interval(values, bounds), items)


def paired(reference: Sequence[float | None], candidate: Sequence[float | None]) -> tuple[Values, Values]:
    """The scores of both checkpoints, (items,) each. Items without both scores are left out."""
    pairs = [pair for pair in zip(reference, candidate, strict=True) if None not in pair]
    both = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    return both[:, 0], both[:, 1]
