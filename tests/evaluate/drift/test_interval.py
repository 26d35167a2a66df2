"""Bootstrap intervals: that they hold what they promise, and what never changes them."""

import math

import numpy as np
import pytest
import torch

from compress.evaluate.drift.interval import (
    expanded_tail,
    interval_bounds,
    mean_interval,
    perplexity_intervals,
    student_quantile,
)
from compress.evaluate.tasks.retention import retention_by_kind

pytestmark = pytest.mark.slow  # runs whole jobs

RUNS = 1000


def correlated_nlls(generator, count):
    """Nats of both models in `count` windows of different length; a window has an individual level and harm."""
    lengths = generator.integers(10, 60, size=count)
    window = np.repeat(np.arange(count), lengths)
    level = generator.normal(3, 0.5, count)[window] + generator.normal(0, 1, len(window))
    harm = generator.gamma(2, 0.05, count)[window] + generator.normal(0, 0.1, len(window))
    return (torch.from_numpy(column) for column in (level, level + harm, window))


def test_the_interval_of_drift_covers_the_true_value_in_95_percent_of_runs():
    """24 windows, as by default; tokens inside a window are correlated, harm is skewed. Truth: exp(0.1)."""
    generator, inside = np.random.default_rng(11), 0
    for run in range(RUNS):
        reference, candidate, window = correlated_nlls(generator, 24)
        intervals = perplexity_intervals(reference, candidate, window, draws=500, seed=run)
        inside += intervals["perplexity_ratio_low"] <= math.exp(0.1) <= intervals["perplexity_ratio_high"]
    assert 0.92 <= inside / RUNS <= 0.975


@pytest.mark.parametrize("count", [2, 5])
def test_the_interval_of_few_windows_covers_the_true_value_in_90_percent(count):
    generator, inside = np.random.default_rng(count), {"mean": 0, "ratio": 0, "difference": 0}
    for run in range(RUNS // 2):
        ours, theirs, window = correlated_nlls(generator, count)
        low, high = mean_interval(ours, window, draws=200, seed=run)
        inside["mean"] += low <= 3 <= high
        intervals = perplexity_intervals(ours, theirs, window, draws=200, seed=run)
        inside["ratio"] += intervals["perplexity_ratio_low"] <= math.exp(0.1) <= intervals["perplexity_ratio_high"]
        truth = math.exp(3.1) - math.exp(3)
        inside["difference"] += (
            intervals["perplexity_difference_low"] <= truth <= intervals["perplexity_difference_high"]
        )
    assert inside["mean"] >= 0.9 * RUNS / 2 and inside["ratio"] >= 0.9 * RUNS / 2
    assert inside["difference"] >= 0.85 * RUNS / 2  # exp of a mean is skewed


def test_the_interval_of_8_windows_covers_the_true_value_as_often():
    generator, inside = np.random.default_rng(12), 0
    for run in range(RUNS):
        reference, _, window = correlated_nlls(generator, 8)
        low, high = mean_interval(reference, window, draws=500, seed=run)
        inside += low <= 3 <= high
    assert 0.92 <= inside / RUNS <= 0.975


def test_the_interval_of_retention_covers_the_true_value_as_often():
    """Two kinds of 60 items: the reference solves 60 %; the candidate 80 % of those, and 15 % of the others."""
    generator, inside = np.random.default_rng(13), {"kind": 0, "mean": 0}
    truth = 100 * (0.6 * 0.8 + 0.4 * 0.15) / 0.6
    for _ in range(RUNS):
        ours = {kind: (generator.random(60) < 0.6) * 1.0 for kind in "ab"}
        chance = {kind: np.where(scores > 0, 0.8, 0.15) for kind, scores in ours.items()}
        theirs = {kind: (generator.random(60) < odds) * 1.0 for kind, odds in chance.items()}
        kinds, mean = retention_by_kind(ours, theirs)
        inside["kind"] += kinds["a"].low <= truth <= kinds["a"].high
        inside["mean"] += mean.low <= truth <= mean.high
    for covered in inside.values():
        assert 0.92 <= covered / RUNS <= 0.975


def test_repeated_tokens_never_narrow_the_interval():
    reference, candidate, window = correlated_nlls(np.random.default_rng(3), 24)
    once = perplexity_intervals(reference, candidate, window)
    thrice = perplexity_intervals(reference.repeat(3), candidate.repeat(3), window.repeat(3))
    assert thrice == pytest.approx(once)


def test_pairing_narrows_the_interval_of_the_perplexity_ratio():
    reference, candidate, window = correlated_nlls(np.random.default_rng(4), 24)
    intervals = perplexity_intervals(reference, candidate, window)
    low, high = mean_interval(candidate, window)
    paired = math.log(intervals["perplexity_ratio_high"] / intervals["perplexity_ratio_low"])
    assert paired < 0.4 * (high - low)
    assert (
        intervals["perplexity_difference_low"]
        < intervals["perplexity_difference"]
        < intervals["perplexity_difference_high"]
    )
    assert intervals["perplexity_difference"] == pytest.approx(candidate.mean().exp() - reference.mean().exp())


def test_the_interval_depends_on_the_seed_but_not_on_window_numbers():
    values, _, window = correlated_nlls(np.random.default_rng(5), 24)
    assert mean_interval(values, window) == mean_interval(values, 3 * window + 7)
    assert mean_interval(values, window) != mean_interval(values, window, seed=1)


def test_one_window_has_no_interval():
    one = torch.zeros(9, dtype=torch.int64)
    assert mean_interval(torch.rand(9), one) == (None, None)
    intervals = perplexity_intervals(torch.rand(9), torch.rand(9), one)
    assert intervals["perplexity_ratio_low"] is None and intervals["perplexity_difference"] is not None


@pytest.mark.parametrize(("freedom", "expected"), [(4, 2.776), (7, 2.365), (23, 2.069), (1000, 1.962)])
def test_quantiles_of_students_t_match_the_tables(freedom, expected):
    assert student_quantile(0.975, freedom) == pytest.approx(expected, abs=4e-3)


def test_with_many_units_the_ends_are_plain_percentiles():
    assert expanded_tail(1_000_000) == pytest.approx(0.025, abs=1e-5)
    assert expanded_tail(12) < expanded_tail(24) < 0.025
    assert interval_bounds(np.linspace(0, 1, 100_001), expanded_tail(1_000_000)) == pytest.approx(
        (0.025, 0.975), abs=1e-4
    )
