import pytest

from compress.core.units import format_bytes


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (4_096, "4.1 kB"),
        (83_120_000, "83.1 MB"),
        (108_262_320, "108.3 MB"),
        (1_170_000_000, "1.17 GB"),
        (1.6e10, "16.0 GB"),
    ],
)
def test_sizes_have_a_unit_and_at_most_two_decimals(count, text):
    assert format_bytes(count) == text
