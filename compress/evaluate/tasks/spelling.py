"""Whether an answer names one of several accepted spellings: case, accents, width and punctuation do not count."""

import re
import unicodedata
from collections.abc import Sequence

ARTICLES = re.compile(r"\b(?:a|an|the)\b")
NOT_A_WORD = re.compile(r"[^\w.%]+|(?<!\d)\.|\.(?!\d)|_")
CJK = re.compile(r"[\u3400-\u9fff]")


def normalize(text: str) -> str:
    """Small letters without accents, half width, words set apart by one space, no articles: "Café, the" -> "cafe"."""
    decomposed = unicodedata.normalize("NFKD", re.sub(r"(?<=\d),(?=\d{3})", "", text).casefold())
    plain = "".join(letter for letter in decomposed if not unicodedata.combining(letter))
    return " ".join(ARTICLES.sub(" ", NOT_A_WORD.sub(" ", plain)).split())


def names(answer: str, spelling: str) -> bool:
    """Whether the answer holds a spelling as whole words; Chinese, which sets no words apart, anywhere in it."""
    wanted, given = normalize(spelling), normalize(answer)
    if not wanted:
        return False
    if CJK.search(wanted):
        return wanted.replace(" ", "") in given.replace(" ", "")
    return re.search(rf"(?<![a-z0-9.]){re.escape(wanted)}(?![a-z0-9]|\.\d)", given) is not None


def first_named(answer: str, spellings: Sequence[str]) -> str | None:
    """The first of the spellings that the answer names, or None."""
    return next((spelling for spelling in spellings if names(answer, spelling)), None)


def excerpt(text: str, length: int = 60) -> str:
    """The beginning of an answer on one line, for a reason."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1] + "…"
