import pytest

from compress.core.sizes import format_bytes


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (4_096, "4.1 kB"),
        (83_120_000, "83.1 MB"),
        (-83_120_000, "-83.1 MB"),
        (1_170_000_000, "1.17 GB"),
        (1.6e13, "16,000.00 GB"),
    ],
)
def test_a_size_has_the_largest_unit_that_is_not_larger(count, text):
    assert format_bytes(count) == text
