"""Long documents: the first part and the best parts fit, and every gap is marked."""

import pytest

from compress.serve.documents.parts import GAP, PART, best_parts, first_part, split, words


def count(text):
    return len(text.split())


LONG = "\n".join(
    f"Paragraph {number} is about topic{number} and nothing else. {'filler ' * 90}" for number in range(40)
)
TABLE = "\n".join(["| fruit | price |", "|---|---|", *(f"| fruit{number} | {number} |" for number in range(300))])


def test_a_text_that_fits_is_unchanged():
    assert first_part("a b c", 3, count).text == "a b c"


@pytest.mark.parametrize("room", [1, 5, 100, 500, 2000])
def test_the_first_part_fits_and_its_end_is_marked(room):
    fitted = first_part(LONG, room, count)
    assert count(fitted.text) <= room
    assert not fitted.text or (
        fitted.text.endswith(GAP) and LONG.startswith(fitted.text.removesuffix(GAP).rstrip("\n"))
    )


def test_the_first_part_uses_most_of_the_room():
    assert count(first_part(LONG, 2000, count).text) > 1700


def test_the_best_parts_hold_what_the_question_is_about():
    fitted = best_parts(LONG, "topic37 topic3?", 400, count)
    assert "topic37 " in fitted.text and "topic3 " in fitted.text and count(fitted.text) <= 400
    assert fitted.text.index("topic3 ") < fitted.text.index(GAP, 10) < fitted.text.index("topic37 ")


def test_words_that_every_part_has_bring_no_part():
    assert best_parts(LONG, "What is topic37 about?", 4000, count).parts == 1


def test_a_question_without_any_match_finds_nothing():
    assert best_parts(LONG, "zebra", 400, count).text == ""
    assert best_parts(LONG, "", 400, count).text == ""


def test_every_part_of_a_table_has_its_head():
    parts = split(TABLE)
    assert len(parts) > 3 and all(part.startswith("| fruit | price |\n|---|---|") for part in parts)
    assert "| fruit299 | 299 |" in best_parts(TABLE, "fruit299", 200, count).text


@pytest.mark.parametrize("head", [10, 300, 390, 410, 100_000])
@pytest.mark.parametrize("row", [1, 300, 500, 5_000])
def test_all_parts_of_a_table_have_at_most_three_times_its_text(head, row):
    table = "\n".join(["|" + "h" * head, "|-|", *["|" + "x" * row] * 400])
    parts = split(table)
    assert sum(map(len, parts)) <= 3 * len(table) and max(map(len, parts)) < 2 * PART
    assert "".join(parts).count("x") == 400 * row


def test_many_empty_lines_are_many_parts():
    assert len(split("\n" * 10_000)) > 10


def test_no_line_of_a_text_is_lost():
    assert "\n".join(split(LONG)).replace("\n", "") == LONG.replace("\n", "")


def test_chinese_is_searched_by_pairs_of_characters():
    assert words("苹果价格 USB3") == ["苹果", "果价", "价格", "usb3"]
    text = "\n".join(["香蕉产自南方。" * 120, "苹果的价格是五元。" * 100, "天气很好。" * 170] * 5)
    fitted = best_parts(text, "苹果多少钱", 9, count)
    assert "苹果" in fitted.text and "天气" not in fitted.text
