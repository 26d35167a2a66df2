"""Open questions about a short fact. A right answer contains an accepted spelling and no refused spelling.

    expected: {"answers": ["8", "eight"], "refused": ["6"]}

`refused` is optional.
"""

from collections.abc import Sequence

from compress.evaluate.tasks.item import Expected, Item, Kind, Score, check_one_turn, check_texts
from compress.evaluate.tasks.spelling import excerpt, first_named


def check(item: Item) -> None:
    check_one_turn(item)
    check_texts(item.expected.get("answers"), "expected.answers")
    if "refused" in item.expected:
        check_texts(item.expected["refused"], "expected.refused")


def score_fact(expected: Expected, answer: str) -> Score:
    """1 if the answer contains an accepted spelling and no refused spelling, else 0."""
    if wrong := first_named(answer, expected.get("refused", ())):
        return Score(0.0, f"contains {wrong}")
    if right := first_named(answer, expected["answers"]):
        return Score(1.0, f"contains {right}")
    return Score(0.0, f"expected {expected['answers'][0]}: {excerpt(answer)}")


def score(expected: Expected, answers: Sequence[str]) -> Score:
    return score_fact(expected, answers[0])


KIND = Kind(
    name="qa",
    max_tokens=48,
    instruction={"en": "Answer the question with a few words.", "zh": "请用几个词简短回答问题。"},
    check=check,
    score=score,
    example=lambda expected: [expected["answers"][0]],
)
