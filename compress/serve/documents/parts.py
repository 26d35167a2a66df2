"""Fit a long text into a number of tokens: its first part, or the parts that match a question best.

Parts are ranked by BM25 (Robertson and Zaragoza, 2009). They keep their order in the text, and every gap is marked.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Count = Callable[[str], int]  # the tokens of a text
PART = 800  # characters, about 200 tokens
GAP = "[…]"
WORD = re.compile(r"[㐀-鿿]+|[^\W_㐀-鿿]+")
RELEVANT = 0.1  # of the best score; parts below it only share words that all parts have
HEAD_ROWS = 2  # of a Markdown table: the head and the line below it


@dataclass(frozen=True)
class Fitted:
    """The text that fits, the number of parts in it, and the number `of` all parts."""

    text: str
    parts: int
    of: int


def first_part(text: str, room: int, count: Count) -> Fitted:
    """The longest beginning of the text, in whole parts, that has at most `room` tokens.

    It ends with GAP if anything is missing. If the first part alone is too long, it is cut between two characters.
    """
    pieces = split(text)
    if count(text) <= room:
        return Fitted(text, len(pieces), len(pieces))
    number = how_many(pieces, room, count)
    if number:
        return Fitted(join(pieces, range(number)), number, len(pieces))
    length = longest_beginning(pieces[0], room, count)
    return Fitted(f"{pieces[0][:length]}\n{GAP}" if length else "", 0, len(pieces))


def best_parts(text: str, question: str, room: int, count: Count) -> Fitted:
    """The parts that match the question best, in the order of the text, with at most `room` tokens."""
    pieces = split(text)
    ranked = rank(pieces, question)
    least = RELEVANT * ranked[0][1] if ranked else 0.0
    order = [number for number, score in ranked if score > least]
    number = how_many([pieces[number] for number in order], room, count)
    chosen = sorted(order[:number])
    return Fitted(join(pieces, chosen) if chosen else "", number, len(pieces))


def how_many(pieces: Sequence[str], room: int, count: Count) -> int:
    """The number of first pieces that together have at most `room` tokens, with one GAP per piece."""
    gap = count(f"\n{GAP}\n")
    for number, piece in enumerate(pieces):
        room -= count(piece) + gap
        if room < 0:
            return number
    return len(pieces)


def longest_beginning(text: str, room: int, count: Count) -> int:
    """The number of characters in the longest beginning of the text that has, with a GAP, at most `room` tokens.

    It is found by binary search.
    """
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if count(f"{text[:middle]}\n{GAP}") <= room else (low, middle - 1)
    return low


def join(pieces: Sequence[str], numbers: Sequence[int] | range) -> str:
    """The pieces with these numbers as one text. GAP takes the place of missing pieces."""
    lines: list[str] = []
    last = -1
    for number in numbers:
        lines += [GAP] if number != last + 1 else []
        lines.append(pieces[number])
        last = number
    return "\n".join(lines + ([GAP] if last != len(pieces) - 1 else []))


def split(text: str) -> list[str]:
    """The text in parts of at most PART characters, cut between lines where possible.

    Parts of a table repeat its head if that is short, so all parts together have at most three times the text.
    """
    parts: list[list[str]] = [[]]
    head: list[str] = []
    size = 0
    for line in text.split("\n"):
        in_table = line.startswith("|")
        in_head = in_table and len(head) < HEAD_ROWS
        head = [*head, line] if in_head else head if in_table else []
        for piece in cut(line):
            if size + len(piece) > PART and parts[-1]:
                parts.append(repeated(head) if in_table and not in_head else [])
                size = length(parts[-1])
            parts[-1].append(piece)
            size += length([piece])
    return ["\n".join(part) for part in parts]


def cut(line: str) -> list[str]:
    """The line in pieces of at most PART characters."""
    return [line[start : start + PART] for start in range(0, len(line), PART)] or [""]


def repeated(head: Sequence[str]) -> list[str]:
    """The head of a table for its further parts. A long head is not repeated."""
    return [*head] if length(head) < PART // 2 else []


def length(lines: Sequence[str]) -> int:
    """The characters of lines, each with its line break."""
    return sum(map(len, lines)) + len(lines)


def rank(pieces: Sequence[str], question: str) -> list[tuple[int, float]]:
    """The number and the BM25 score of each part, best first."""
    import bm25s

    query = words(question)
    corpus = [words(piece) for piece in pieces]
    if not query or not any(corpus):
        return []
    index = bm25s.BM25(k1=1.5, b=0.75)
    index.index(corpus, show_progress=False)
    scores = index.get_scores(query).tolist()
    return sorted(enumerate(scores), key=lambda pair: -pair[1])


def words(text: str) -> list[str]:
    """The words of a text in lower case. Chinese has no spaces, so each pair of its characters is a word."""
    result = []
    for run in WORD.findall(text.lower()):
        chinese = "㐀" <= run[0] <= "鿿" and len(run) > 1
        result += [run[place : place + 2] for place in range(len(run) - 1)] if chinese else [run]
    return result
