"""Multi-turn consistency: what was said in an earlier turn is asked for in a later one.

    expected: {"answers": [null, null, ["Mia"]], "refused": [null, null, ["Max"]]}

One entry a turn, null where anything may be answered. The model's own answers stay in the conversation. The score is
the share of the turns asked for that are right.
"""

from collections.abc import Sequence
from typing import Any

from compress.evaluate.tasks.item import Expected, Item, Kind, Score, need_texts
from compress.evaluate.tasks.questions import score_fact


def check(item: Item) -> None:
    if len(item.turns) < 2:
        raise ValueError("a conversation has at least two turns")
    for key in ("answers", "refused"):
        _check_turns(item, key)
    if not any(item.expected["answers"]):
        raise ValueError("expected.answers asks for no turn")


def _check_turns(item: Item, key: str) -> None:
    turns: Any = item.expected.get(key, [None] * len(item.turns) if key == "refused" else None)
    if not isinstance(turns, list) or len(turns) != len(item.turns):
        raise ValueError(f"expected.{key} must have one entry a turn, {len(item.turns)}, null where none is asked for")
    for number, spellings in enumerate(turns, 1):
        if spellings is not None:
            need_texts(spellings, f"expected.{key}, turn {number},")


def score(expected: Expected, answers: Sequence[str]) -> Score:
    """The share of the turns asked for that are right; the reason is that of the first wrong one."""
    refused = expected.get("refused") or [None] * len(answers)
    found = [
        (number, score_fact({"answers": wanted, "refused": wrong or ()}, answer))
        for number, (wanted, wrong, answer) in enumerate(zip(expected["answers"], refused, answers, strict=True), 1)
        if wanted
    ]
    reasons = [f"turn {number}: {score.reason}" for number, score in found if not score.value]
    value = 1 - len(reasons) / len(found)
    return Score(value, reasons[0] if reasons else f"{len(found)} of {len(found)} turns right")


KIND = Kind(name="multi-turn", max_tokens=48, instruction={"en": ""}, check=check, score=score)
