"""Intervals of task scores: coverage by simulation, agreement with published numbers, and no interval without width."""

import numpy as np
import pytest

from compress.core.proportion import (
    ENOUGH,
    difference_interval,
    exact_bound,
    mean_interval,
    ratio_interval,
    score_interval,
    wilson_interval,
)

RUNS = 1000
CHANCES = [(0.8, 0.85, 0.1), (0.5, 0.8, 0.15), (0.95, 0.95, 0.5), (0.3, 0.6, 0.1)]


def draw(generator, items, right, kept, gained):
    """Scores of a reference that is right with chance `right`, and of a candidate that depends on it."""
    reference = generator.random(items) < right
    candidate = np.where(reference, generator.random(items) < kept, generator.random(items) < gained)
    return (reference * 1.0).tolist(), (candidate * 1.0).tolist()


@pytest.mark.parametrize("items", [2, 5, 20, 60])
@pytest.mark.parametrize("chances", CHANCES)
def test_every_interval_covers_the_truth_in_90_percent_of_samples(items, chances):
    generator, inside = np.random.default_rng(items), {"score": 0, "ratio": 0, "difference": 0}
    right, kept, gained = chances
    truth, ratios = right * kept + (1 - right) * gained, 0
    for _ in range(RUNS):
        reference, candidate = draw(generator, items, *chances)
        low, high = score_interval(sum(candidate), items)
        inside["score"] += low <= truth <= high
        low, high = difference_interval(reference, candidate)
        inside["difference"] += low <= truth - right <= high
        if sum(reference):
            ratios += 1
            low, high = ratio_interval(reference, candidate)
            inside["ratio"] += low <= truth / right <= high
    assert inside["score"] >= 0.9 * RUNS and inside["difference"] >= 0.9 * RUNS and inside["ratio"] >= 0.9 * ratios


def test_the_score_intervals_are_the_published_ones():
    """Brown, Cai and DasGupta 2001, and Newcombe 1998, example r = 81 of 263."""
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert score_interval(0, 10) == pytest.approx((0, 0.3085), abs=1e-4)
    assert score_interval(5, 20) == pytest.approx((0.0866, 0.4910), abs=1e-4)
    assert exact_bound(0, 5) == 0


def test_many_items_narrow_every_interval_to_the_value():
    ours, theirs = [1.0, 0.0] * 5000, [1.0, 1.0, 1.0, 0.0] * 2500
    assert score_interval(5000, 10000) == pytest.approx((0.49, 0.51), abs=1e-3)
    assert ratio_interval(theirs, ours) == pytest.approx((2 / 3, 2 / 3), abs=0.02)
    assert difference_interval(theirs, ours) == pytest.approx((-0.25, -0.25), abs=0.02)


def test_a_score_between_0_and_1_lies_inside_its_interval():
    for scores in ([0.5, 0.5], [0.25] * 5, [0.1, 0.9, 0.5], [0.5] * 41):
        low, high = score_interval(sum(scores), len(scores))
        assert low < sum(scores) / len(scores) < high
        low, high = ratio_interval(scores, scores)
        assert low < 1 < high


def test_a_swap_of_both_sides_mirrors_difference_and_ratio():
    ours, theirs = [1.0, 0.0, 1.0, 0.5, 1.0], [1.0, 1.0, 0.0, 1.0, 1.0]
    low, high = difference_interval(ours, theirs)
    assert difference_interval(theirs, ours) == pytest.approx((-high, -low))
    low, high = ratio_interval(ours, theirs)
    assert ratio_interval(theirs, ours) == pytest.approx((1 / high, 1 / low))


def test_the_interval_of_a_mean_of_one_kind_is_that_of_the_kind():
    assert mean_interval([0.5], [(0.2, 0.9)]) == pytest.approx((0.2, 0.9))
    low, high = mean_interval([0.5] * 4, [(0.2, 0.9)] * 4)
    assert (low, high) == pytest.approx((0.5 - 0.3 / 2, 0.5 + 0.4 / 2))


def test_the_least_number_of_items_is_where_a_sign_test_can_reject():
    assert 2 * 0.5**ENOUGH < 0.05 <= 2 * 0.5 ** (ENOUGH - 1)
