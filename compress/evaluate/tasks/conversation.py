"""Multi-turn consistency: a later turn asks for a fact from an earlier turn.

    expected: {"answers": [null, null, ["Mia"]], "refused": [null, null, ["Max"]]}

Both lists have one entry per turn; with null, any answer is right. The model's answers stay in the conversation. The
score is the share of right answers among the turns that have an entry.
"""

from collections.abc import Sequence
from typing import Any

from compress.evaluate.tasks.item import Expected, Item, Kind, Score, check_texts
from compress.evaluate.tasks.questions import score_fact


def check(item: Item) -> None:
    if len(item.turns) < 2:
        raise ValueError("turns: a conversation needs at least two turns")
    for key in ("answers", "refused"):
        _check_turns(item, key)
    if not any(item.expected["answers"]):
        raise ValueError("expected.answers: at least one turn needs an entry")


def _check_turns(item: Item, key: str) -> None:
    turns: Any = item.expected.get(key, [None] * len(item.turns) if key == "refused" else None)
    if not isinstance(turns, list) or len(turns) != len(item.turns):
        raise ValueError(f"expected.{key} must have {len(item.turns)} entries, one per turn; null accepts any answer")
    for number, spellings in enumerate(turns, 1):
        if spellings is not None:
            check_texts(spellings, f"expected.{key}, turn {number},")


def score(expected: Expected, answers: Sequence[str]) -> Score:
    """The share of right turns. The reason comes from the first wrong turn."""
    refused = expected.get("refused") or [None] * len(answers)
    scores = [
        (number, score_fact({"answers": right, "refused": wrong or ()}, answer))
        for number, (right, wrong, answer) in enumerate(zip(expected["answers"], refused, answers, strict=True), 1)
        if right
    ]
    reasons = [f"turn {number}: {score.reason}" for number, score in scores if not score.value]
    value = 1 - len(reasons) / len(scores)
    return Score(value, reasons[0] if reasons else f"{len(scores)} of {len(scores)} turns right")


KIND = Kind(
    name="multi-turn",
    max_tokens=48,
    instruction={"en": ""},
    check=check,
    score=score,
    example=lambda expected: [right[0] if right else "x" for right in expected["answers"]],
)
