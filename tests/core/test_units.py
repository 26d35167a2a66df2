import pytest

from compress.core.units import format_bytes

BELOW_10_GB = [
    (0, "0 B"),
    (999, "999 B"),
    (4_096, "4.1 kB"),
    (83_120_000, "83.1 MB"),
    (-83_120_000, "-83.1 MB"),
    (108_262_320, "108.3 MB"),
    (1_170_000_000, "1.17 GB"),
]


@pytest.mark.parametrize(("count", "text"), [*BELOW_10_GB, (1.6e10, "16.0 GB")])
def test_sizes_have_a_unit_and_at_most_two_decimals(count, text):
    assert format_bytes(count) == text


@pytest.mark.parametrize(("count", "text"), [*BELOW_10_GB, (1.6e13, "16,000.00 GB")])
def test_a_size_that_is_not_short_has_the_largest_unit_that_is_not_larger(count, text):
    assert format_bytes(count, short=False) == text
