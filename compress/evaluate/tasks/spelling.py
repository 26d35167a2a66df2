"""Find spellings in an answer. Case, accents, width and punctuation are ignored."""

import re
import unicodedata
from collections.abc import Sequence

ARTICLES = re.compile(r"\b(?:a|an|the)\b")
NOT_A_WORD = re.compile(r"[^\w.%]+|(?<!\d)\.|\.(?!\d)|_")
CJK = re.compile(r"[\u3400-\u9fff]")


def normalize(text: str) -> str:
    """The text in lower case and half width, without accents, articles and punctuation: "Café, the" -> "cafe"."""
    decomposed = unicodedata.normalize("NFKD", re.sub(r"(?<=\d),(?=\d{3})", "", text).casefold())
    plain = "".join(letter for letter in decomposed if not unicodedata.combining(letter))
    return " ".join(ARTICLES.sub(" ", NOT_A_WORD.sub(" ", plain)).split())


def names(answer: str, spelling: str) -> bool:
    """Whether the answer contains the spelling as whole words. Chinese has no spaces, so any place counts."""
    words, text = normalize(spelling), normalize(answer)
    if not words:
        return False
    if CJK.search(words):
        return words.replace(" ", "") in text.replace(" ", "")
    return re.search(rf"(?<![a-z0-9.]){re.escape(words)}(?![a-z0-9]|\.\d)", text) is not None


def first_named(answer: str, spellings: Sequence[str]) -> str | None:
    """The first of `spellings` that the answer contains, or None."""
    return next((spelling for spelling in spellings if names(answer, spelling)), None)


def excerpt(text: str, length: int = 60) -> str:
    """The beginning of a text on one line."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1] + "…"
