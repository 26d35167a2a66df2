"""Bootstrap intervals of means over tokens. Whole windows are redrawn, because the tokens of a window share context.

A redraw draws as many windows as there are, with replacement. All figures use the same redraws, so differences and
ratios are paired. With few windows a plain percentile interval is too narrow, so this one is Hesterberg's expanded
interval (2015, "What Teachers Should Know About the Bootstrap", https://doi.org/10.1080/00031305.2015.1089789). With
fewer than FEW windows, it is widened to contain Student's interval.
"""

import math
from statistics import NormalDist
from typing import TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress.core.perplexity import sums_mean

DRAWS = 2000
CONFIDENCE = 0.95
TAIL = 0.025  # the share of redraws below a plain 95 % interval, and also the share above it
FEW = 12  # with fewer windows than this, the interval also contains Student's interval
BATCH_COUNTS = 4_000_000  # number of window counts in memory at a time
Values = NDArray[np.float64]
Bounds = tuple[float, float]
Interval = tuple[float | None, float | None]


class PerplexityIntervals(TypedDict):
    """The keys of a `DriftPart` that `perplexity_intervals` computes."""

    perplexity_ratio_low: float | None
    perplexity_ratio_high: float | None
    perplexity_difference: float
    perplexity_difference_low: float | None
    perplexity_difference_high: float | None


def mean_interval(values: Tensor, windows: Tensor, *, draws: int = DRAWS, seed: int = 0) -> Interval:
    """The 95 % interval of the mean of `values` (count,), or (None, None) for a single window.

    `windows` (count,) holds the window of each value.
    """
    return sums_interval(window_sums(windows, values), draws=draws, seed=seed)


def sums_interval(sums: Values, *, draws: int = DRAWS, seed: int = 0) -> Interval:
    """The 95 % interval of a mean over tokens, or (None, None) for a single window.

    `sums` (windows, 2) holds each window's number of tokens and sum of values.
    """
    drawn = redrawn_means(sums, draws=draws, seed=seed)
    if drawn is None:
        return None, None
    return outer(interval_bounds(drawn[0], expanded_tail(len(sums))), few_bounds(sums))


def perplexity_intervals(
    reference_nll: Tensor, nll: Tensor, windows: Tensor, *, draws: int = DRAWS, seed: int = 0
) -> PerplexityIntervals:
    """The difference of the perplexities, candidate - reference, its interval, and the interval of their ratio.

    The nlls are (count,), in nats. With a single window, the intervals are None.
    """
    sums = window_sums(windows, reference_nll, nll)
    reference, candidate = np.exp(sums[:, 1:].sum(0) / sums[:, 0].sum()).tolist()
    drawn = redrawn_means(sums, draws=draws, seed=seed)
    difference: Interval = (None, None)
    ratio: Interval = (None, None)
    if drawn is not None:
        tail, (tokens, ours, theirs) = expanded_tail(len(sums)), sums.T
        low, high = outer(interval_bounds(drawn[1] - drawn[0], tail), few_bounds(np.stack([tokens, theirs - ours], 1)))
        ratio = math.exp(low), math.exp(high)
        shift = tokens * (candidate * (1 - math.log(candidate)) - reference * (1 - math.log(reference)))
        linear = np.stack([tokens, candidate * theirs - reference * ours + shift], 1)
        difference = outer(interval_bounds(np.exp(drawn[1]) - np.exp(drawn[0]), tail), few_bounds(linear))
    return {
        "perplexity_ratio_low": ratio[0],
        "perplexity_ratio_high": ratio[1],
        "perplexity_difference": candidate - reference,
        "perplexity_difference_low": difference[0],
        "perplexity_difference_high": difference[1],
    }


def few_bounds(sums: Values) -> Bounds | None:
    """Student's interval of a mean over tokens, or None if there are FEW windows or more.

    `sums` (windows, 2) holds each window's number of tokens and sum of values.
    """
    if len(sums) >= FEW:
        return None
    mean = sums_mean(torch.from_numpy(sums[:, 1].copy()), torch.from_numpy(sums[:, 0].copy()))
    spread = student_quantile(0.5 + CONFIDENCE / 2, len(sums) - 1) * (mean.se or 0.0)
    return mean.value - spread, mean.value + spread


def outer(drawn: Interval, few: Bounds | None) -> Bounds:
    """The smallest interval that contains the interval of the redraws, `drawn`, and Student's interval, `few`.

    A `few` of None has no effect. Redraws of a few windows vary too little, so `drawn` alone would be too narrow.
    """
    low, high = drawn
    assert low is not None and high is not None
    return (low, high) if few is None else (min(low, few[0]), max(high, few[1]))


def window_sums(windows: Tensor, *columns: Tensor) -> Values:
    """One row per window that has tokens: the number of tokens, then the sum of each column over the window."""
    _, index = windows.unique(return_inverse=True)
    count = int(index.max()) + 1
    filled = [torch.ones(len(windows), dtype=torch.float64), *(column.double() for column in columns)]
    sums = [torch.zeros(count, dtype=torch.float64).index_add_(0, index, column) for column in filled]
    return torch.stack(sums, 1).numpy()


def redrawn_means(sums: Values, *, draws: int, seed: int) -> Values | None:
    """The mean of each column in each redraw, (columns, draws), or None for a single window."""
    count = len(sums)
    if count < 2:
        return None
    generator = np.random.default_rng(seed)
    size = max(1, min(draws, BATCH_COUNTS // count))
    shares = np.full(count, 1 / count)
    parts = [
        generator.multinomial(count, shares, size=min(size, draws - done)).astype(np.float64) @ sums
        for done in range(0, draws, size)
    ]
    totals = np.concatenate(parts)
    return (totals[:, 1:] / totals[:, :1]).T


def interval_bounds(drawn: Values, tail: float = TAIL) -> Interval:
    """The quantiles `tail` and 1 - `tail` of the redraws, or (None, None) if `drawn` is empty."""
    if not len(drawn):
        return None, None
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return float(low), float(high)


def expanded_tail(count: int, confidence: float = CONFIDENCE) -> float:
    """The share of redraws below the expanded interval: Φ(-√(n / (n - 1)) · t), with n = `count` windows.

    t is the quantile of Student's distribution with n - 1 degrees of freedom.
    """
    return NormalDist().cdf(-math.sqrt(count / (count - 1)) * student_quantile(0.5 + confidence / 2, count - 1))


def student_quantile(probability: float, freedom: int) -> float:
    """The quantile of Student's t distribution with `freedom` degrees of freedom.

    It is exact for 1 and 2 degrees of freedom, and otherwise accurate to 3 digits: the expansion 26.7.5 of Abramowitz
    and Stegun.
    """
    if freedom == 1:
        return math.tan(math.pi * (probability - 0.5))
    if freedom == 2:
        return (2 * probability - 1) * math.sqrt(0.5 / (probability * (1 - probability)))
    z = NormalDist().inv_cdf(probability)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, 1))
