"""Find numbers in text, as exact fractions: 1,234.5, -3/4, \\frac{3}{4}, 1 1/2, 12%, 三百零五, 三分之二."""

import re
import unicodedata
from fractions import Fraction

DECIMAL = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+"
ARABIC = re.compile(
    rf"(?P<sign>(?<![\w)])[-−–])?\s?[$¥€£]?(?:\\[dt]?frac\{{(?P<above>\d+)\}}\{{(?P<below>\d+)\}}"
    rf"|(?:(?P<whole>\d+)\s)?(?P<top>\d+)\s?/\s?(?P<bottom>\d+)|(?P<decimal>{DECIMAL}))"
)
DIGITS = {digit: value for value, digit in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2, "兩": 2}
UNITS = {"亿": 100_000_000, "万": 10_000, "千": 1000, "百": 100, "十": 10}  # in descending order
NUMERAL = "[零〇一二两兩三四五六七八九十百千万亿]+"
CHINESE = re.compile(rf"(?P<sign>负)?(?:(?P<bottom>{NUMERAL})分之(?P<top>{NUMERAL})|(?P<whole>{NUMERAL}))")


def find_numbers(text: str) -> list[tuple[Fraction, int]]:
    """All numbers in the text, in order, each with the count of its decimal places.

    Chinese numerals count only if the text has no digits, because 一 is also a word ("一共有 12 个").
    """
    text = unicodedata.normalize("NFKC", text).replace("⁄", "/")
    return [_arabic(match) for match in ARABIC.finditer(text) if _is_number(match)] or _chinese_numbers(text)


def _is_number(match: re.Match[str]) -> bool:
    """Whether the match is a number. A fraction whose denominator is 0 is not."""
    return not any(match[name] is not None and int(match[name]) == 0 for name in ("below", "bottom"))


def _arabic(match: re.Match[str]) -> tuple[Fraction, int]:
    sign, places = (-1 if match["sign"] else 1), 0
    if match["above"]:
        value = Fraction(int(match["above"]), int(match["below"]))
    elif match["top"]:
        value = int(match["whole"] or 0) + Fraction(int(match["top"]), int(match["bottom"]))
    else:
        value = Fraction(match["decimal"].replace(",", ""))
        places = len(match["decimal"].partition(".")[2])
    return sign * value, places


def _chinese_numbers(text: str) -> list[tuple[Fraction, int]]:
    numbers = []
    for match in CHINESE.finditer(text):
        bottom = read_numeral(match["bottom"]) if match["bottom"] else 1
        if bottom:
            value = Fraction(read_numeral(match["top"] or match["whole"]), bottom)
            numbers.append((-value if match["sign"] else value, 0))
    return numbers


def read_numeral(numeral: str) -> int:
    """The value of a Chinese numeral: 三千零五十 -> 3050, 二〇二四 -> 2024, 一亿三千万 -> 130000000.

    A final digit without a unit counts tenths of the previous unit: 一百二 -> 120.
    """
    for unit, size in UNITS.items():
        if unit in numeral:
            above, _, below = numeral.rpartition(unit)
            rest = read_numeral(below) if below else 0
            counts_tenths = len(below) == 1 and size > 10
            return (read_numeral(above) if above else 1) * size + (rest * size // 10 if counts_tenths else rest)
    return int("".join(str(DIGITS[sign]) for sign in numeral))
