"""Open question answering: a short fact, right when the answer names an accepted spelling and none that is refused.

expected: {"answers": ["8", "eight"], "refused": ["6"]}        `refused` may be left out
"""

from collections.abc import Sequence

from compress.evaluate.tasks.item import Expected, Item, Kind, Score, need_one_turn, need_texts
from compress.evaluate.tasks.spelling import excerpt, first_named


def check(item: Item) -> None:
    need_one_turn(item)
    need_texts(item.expected.get("answers"), "expected.answers")
    if "refused" in item.expected:
        need_texts(item.expected["refused"], "expected.refused")


def score_fact(expected: Expected, answer: str) -> Score:
    """1 when the answer names an accepted spelling, 0 when none, or one that is refused."""
    if wrong := first_named(answer, expected.get("refused", ())):
        return Score(0.0, f"says {wrong}")
    if found := first_named(answer, expected["answers"]):
        return Score(1.0, f"says {found}")
    return Score(0.0, f"expected {expected['answers'][0]}: {excerpt(answer)}")


def score(expected: Expected, answers: Sequence[str]) -> Score:
    return score_fact(expected, answers[0])


KIND = Kind(
    name="qa",
    max_tokens=48,
    instruction={"en": "Answer the question with a few words.", "zh": "请用几个词简短回答问题。"},
    check=check,
    score=score,
)
