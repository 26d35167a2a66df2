"""Mathematics: the answer's final number must equal the expected number exactly.

    expected: {"number": "3/4"}

A decimal with two or more places may be rounded: 0.33 counts as 1/3, but 0.3 does not.
"""

import math
import re
from collections.abc import Sequence
from fractions import Fraction

from compress.evaluate.tasks.item import Expected, Item, Kind, Score, check_one_turn
from compress.evaluate.tasks.numbers import find_numbers
from compress.evaluate.tasks.spelling import excerpt

ANNOUNCED = re.compile(r"####|\\boxed|\banswer\b|答案|\btherefore\b|因此|所以|∴", re.IGNORECASE)
ROUNDED_PLACES = 2
ANNOUNCEMENTS = 50  # the last ones that are read: an answer can repeat them without end
LONGEST = 100  # characters of an expected number
LOG_2 = math.log10(2)


def check(item: Item) -> None:
    check_one_turn(item)
    number = item.expected.get("number")
    if not isinstance(number, str) or len(number) > LONGEST or len(find_numbers(number)) != 1:
        raise ValueError('expected.number must be a text with one number, like "12" or "3/4"')


def final_number(answer: str) -> tuple[Fraction, int] | None:
    """The final number of the answer and the count of its decimal places, or None if the answer has no number.

    The final number follows the last announcement ("Answer:", \\boxed, 答案, ####); without an announcement it is the
    last number. In a line with an equals sign, the number after the sign counts: "the answer is 3 + 4 = 7".
    """
    for match in reversed(list(ANNOUNCED.finditer(answer))[-ANNOUNCEMENTS:]):
        line = answer[match.end() :].strip().partition("\n")[0]
        if "=" in line and find_numbers(line.rpartition("=")[2]):
            line = line.rpartition("=")[2]
        if numbers := find_numbers(line):
            return numbers[0]
    numbers = find_numbers(answer)
    return numbers[-1] if numbers else None


def agrees(value: Fraction, places: int, expected: Fraction) -> bool:
    """Whether both numbers are equal, or become equal when `expected` is rounded to `places` decimal places.

    Numbers with fewer than ROUNDED_PLACES decimal places must be equal.
    """
    return value == expected or (places >= ROUNDED_PLACES and abs(value - expected) <= Fraction(1, 2 * 10**places))


def score(expected: Expected, answers: Sequence[str]) -> Score:
    """1 if the final number is the expected number, else 0."""
    target, _ = find_numbers(expected["number"])[0]
    try:
        final = final_number(answers[0])
    except (ValueError, RecursionError):  # more digits than Python reads (4300), or more units than a numeral has
        return Score(0.0, f"a number is too long: {excerpt(answers[0])}")
    if final is None:
        return Score(0.0, f"no number: {excerpt(answers[0])}")
    value, places = final
    if agrees(value, places, target):
        return Score(1.0, f"{expected['number']} is right")
    return Score(0.0, f"{shown(value)} is not {expected['number']}")


def shown(value: Fraction) -> str:
    """The value as text with six digits.

    If the value is too large for a float, the text states its number of digits instead.
    """
    try:
        return f"{float(value):g}"
    except OverflowError:
        digits = (abs(value.numerator).bit_length() - value.denominator.bit_length()) * LOG_2
        return f"a number of about {digits:.0f} digits"


KIND = Kind(
    name="math",
    max_tokens=256,
    instruction={
        "en": 'Solve the problem. End with one line "Answer: " and the number.',
        "zh": "请解题，最后单独一行写“答案：”和数字。",
    },
    check=check,
    score=score,
    example=lambda expected: [expected["number"]],
)
