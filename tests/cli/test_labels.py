import pytest

from compress.cli.labels import LABELS, duration, label, value_text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.44, "0.4 s"), (12.4, "12 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (7_500, "2 h 5 min")],
)
def test_durations_are_in_seconds_minutes_or_hours(seconds, text):
    assert duration(seconds) == text


def test_an_unlisted_key_is_shown_with_spaces():
    assert (label("group_size"), value_text("group_size", 128)) == ("group size", "128")


def test_text_in_place_of_a_number_is_shown_as_it_is():
    assert value_text("kl", "not compared") == "not compared"


def test_no_label_is_a_raw_key():
    assert not [words for words, _ in LABELS.values() if "_" in words]
