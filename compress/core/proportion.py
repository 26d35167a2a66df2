"""Confidence intervals of task scores, by formulas that also hold for few items.

A bootstrap interval has no width if all items have equal scores. The formulas here always give a width:

    one score      exact (Clopper and Pearson 1934, https://doi.org/10.1093/biomet/26.4.404) up to EXACT items,
                   then Wilson 1927, https://doi.org/10.1080/01621459.1927.10502953
    a ratio        Bonett and Price 2006, https://doi.org/10.1002/sim.2440, both scores on the same items
    a difference   Bonett and Price 2012, https://doi.org/10.3102/1076998611411915, both scores on the same items
    a mean         Zou and Donner 2008, https://doi.org/10.1002/sim.3095, of independent kinds of task

An item's score is from 0 to 1. The formulas assume that it is 0 or 1. Scores between 0 and 1 vary less, so their
interval is wider than necessary.
"""

from collections.abc import Sequence
from math import ceil, comb, floor, hypot, sqrt
from statistics import NormalDist

Bounds = tuple[float, float]
Z = NormalDist().inv_cdf(0.975)  # of a 95 % interval
EXACT = 40  # items with an exact interval: Wilson's misses a score near 0 or 100 too often with few
STEPS = 40  # of the bisection: 12 digits
ENOUGH = 6  # items: with fewer, not even a fall on every item is significant in a two-sided sign test at 5 %


def score_interval(right: float, items: int) -> Bounds:
    """The interval of a mean score: `right` is the sum of the scores of `items` items."""
    if items > EXACT:
        return wilson_interval(right, items)
    return exact_bound(floor(right), items), 1 - exact_bound(items - ceil(right), items)


def exact_bound(right: int, items: int) -> float:
    """The lower bound of the exact 95 % interval of a score, if `right` of `items` items are right.

    If the true score is this bound, 2.5 % of samples have `right` or more right items. For `right` 0, the bound is 0.
    """
    low, high = 0.0, 1.0 if right else 0.0
    for _ in range(STEPS):
        share = (low + high) / 2
        tail = sum(comb(items, n) * share**n * (1 - share) ** (items - n) for n in range(right, items + 1))
        low, high = (share, high) if tail < 0.025 else (low, share)
    return low


def wilson_interval(right: float, items: float, z: float = Z) -> Bounds:
    """Wilson's interval of a mean score: `right` is the sum of the scores of `items` items."""
    centre, spread = 2 * right + z * z, z * sqrt(z * z + 4 * right * max(0.0, 1 - right / items))
    whole = 2 * (items + z * z)
    return max(0.0, (centre - spread) / whole), min(1.0, (centre + spread) / whole)


def ratio_interval(reference: Sequence[float], candidate: Sequence[float]) -> Bounds:
    """The interval of mean(candidate) / mean(reference), for a reference that does not score 0.

    Items that both models fail do not change the ratio and are left out. On the other items, both scores get a Wilson
    interval with a reduced z. The quotient of these two intervals then covers 95 %.
    """
    ours, theirs = sum(candidate), sum(reference)
    both = sum(min(pair) for pair in zip(reference, candidate, strict=True))
    items = ours + theirs - both
    share, base = (ours + 1) / (items + 2), (theirs + 1) / (items + 2)
    whole = sqrt((ours + theirs - 2 * both + 2) / ((ours + 1) * (theirs + 1)))
    z = Z * whole / (sqrt((1 - share) / (ours + 1)) + sqrt((1 - base) / (theirs + 1)))
    (low, high), (least, most) = wilson_interval(ours, items, z), wilson_interval(theirs, items, z)
    return low / most, high / least


def difference_interval(before: Sequence[float], after: Sequence[float]) -> Bounds:
    """The interval of mean(after) - mean(before): Wald's, with one improved and one worsened item added."""
    changes = [new - old for old, new in zip(before, after, strict=True)]
    items = len(changes) + 2
    rose, fell = (1 + sum(max(sign * change, 0.0) for change in changes) for sign in (1, -1))
    centre = (rose - fell) / items
    error = Z * sqrt(max(0.0, (rose + fell) / items - centre * centre) / items)
    return max(-1.0, centre - error), min(1.0, centre + error)


def mean_interval(values: Sequence[float], bounds: Sequence[Bounds]) -> Bounds:
    """The interval of the mean of independent values. `bounds` holds the interval of each value."""
    mean, count = sum(values) / len(values), len(values)
    below = hypot(*(value - low for value, (low, _) in zip(values, bounds, strict=True)))
    above = hypot(*(high - value for value, (_, high) in zip(values, bounds, strict=True)))
    return mean - below / count, mean + above / count
