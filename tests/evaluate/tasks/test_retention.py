import numpy as np
import pytest

from compress.evaluate.tasks.retention import retention_by_kind


def test_the_reference_retains_100_percent_of_itself():
    scores = {"qa": [1.0, 0.0, 1.0, 1.0], "math": [0.5, 1.0]}
    kinds, mean = retention_by_kind(scores, scores)
    for retention in (*kinds.values(), mean):
        assert retention.low < retention.value == 100 < retention.high


def test_two_items_never_give_an_interval_without_width():
    for candidate in ([0.0, 0.0], [1.0, 0.0], [1.0, 1.0]):
        kinds, mean = retention_by_kind({"qa": [1.0, 1.0]}, {"qa": candidate})
        assert kinds["qa"].high - kinds["qa"].low > 75
        assert (mean.low, mean.high) == pytest.approx((kinds["qa"].low, kinds["qa"].high))


def test_a_kind_where_the_reference_scores_0_has_no_retention():
    reference, candidate = {"qa": [0.0, 0.0], "math": [1.0, 1.0]}, {"qa": [1.0, 0.0], "math": [1.0, 0.0]}
    kinds, mean = retention_by_kind(reference, candidate)
    assert (kinds["qa"].value, kinds["qa"].low, kinds["qa"].high) == (None, None, None)
    assert kinds["math"].value == mean.value == 50
    nothing, mean = retention_by_kind({"qa": [0.0]}, {"qa": [1.0]})
    assert nothing["qa"].value is None and mean.value is None and mean.low is None


def test_an_item_with_a_scorer_error_counts_for_neither_checkpoint():
    kinds, _ = retention_by_kind({"qa": [1.0, 1.0, None]}, {"qa": [1.0, None, 1.0]})
    assert kinds["qa"].value == 100 and kinds["qa"].items == 1
    none, _ = retention_by_kind({"qa": [None]}, {"qa": [1.0]})
    assert none["qa"].value is None and none["qa"].items == 0


def test_failing_on_the_same_items_narrows_the_interval():
    reference = [1.0, 0.0] * 30
    together = [1.0, 0.0] * 27 + [0.0, 0.0] * 3
    apart = [0.0, 0.0] * 3 + [0.0, 1.0] * 15 + [1.0, 0.0] * 12
    assert sum(together) == sum(apart)
    narrow, wide = (retention_by_kind({"qa": reference}, {"qa": scores})[1] for scores in (together, apart))
    assert narrow.value == pytest.approx(wide.value) and narrow.high - narrow.low < 0.5 * (wide.high - wide.low)


def test_the_interval_covers_the_true_value_in_95_percent_of_runs():
    """Reference right 80 %, candidate right on 85 % of those and 10 % of the others: truth (0.68 + 0.02) / 0.8."""
    generator, inside, runs = np.random.default_rng(7), 0, 300
    for _ in range(runs):
        reference = generator.random(60) < 0.8
        candidate = np.where(reference, generator.random(60) < 0.85, generator.random(60) < 0.1)
        mean = retention_by_kind({"a": reference * 1.0}, {"a": candidate * 1.0})[1]
        inside += mean.low <= 87.5 <= mean.high
    assert 0.91 < inside / runs < 0.98


def test_a_single_item_has_a_wide_interval():
    kinds, _ = retention_by_kind({"qa": [1.0]}, {"qa": [1.0]})
    assert kinds["qa"].value == 100 and kinds["qa"].low < 30 and kinds["qa"].high > 300
