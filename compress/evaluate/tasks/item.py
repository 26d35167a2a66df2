"""What a task is: an item, the score of its answers, and the row that a kind of task fills in."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

EMPTY = "empty"
Expected = Mapping[str, Any]


@dataclass(frozen=True)
class Score:
    """How good an answer is, 0 to 1, and why. A `value` of None: the scorer failed, so nothing is known."""

    value: float | None
    reason: str


@dataclass(frozen=True)
class Item:
    """One task: what the user says turn by turn, and what its kind expects of the answers."""

    id: str
    kind: str
    language: str
    turns: tuple[str, ...]
    expected: Expected


@dataclass(frozen=True)
class Kind:
    """A kind of task.

    `instruction` is put before the first turn, by language. An answer ends after `max_tokens`. `check` raises
    ValueError for an item of this kind that cannot be scored; `score` is pure.
    """

    name: str
    max_tokens: int
    instruction: Mapping[str, str]
    check: Callable[[Item], None]
    score: Callable[[Expected, Sequence[str]], Score]

    def first_turn(self, item: Item) -> str:
        """The first turn as the model gets it. Languages without an instruction of their own get the English one."""
        instruction = self.instruction.get(item.language, self.instruction["en"])
        return f"{instruction}\n\n{item.turns[0]}" if instruction else item.turns[0]


def score_item(kind: Kind, item: Item, answers: Sequence[str]) -> Score:
    """The score of a model's answers, one a turn. A scorer that raises gives an error, never a wrong answer."""
    if not any(answer.strip() for answer in answers):
        return Score(0.0, EMPTY)
    try:
        return kind.score(item.expected, answers)
    except Exception as error:  # whatever a scorer raises is its own fault, not the model's
        return Score(None, f"error: {type(error).__name__}: {error}")


def need_texts(value: Any, what: str) -> None:
    """ValueError unless `value` is a list of at least one text that is not blank."""
    if not (isinstance(value, list) and value and all(isinstance(text, str) and text.strip() for text in value)):
        raise ValueError(f"{what} must be a list of texts, none of them blank")


def need_one_turn(item: Item) -> None:
    if len(item.turns) != 1:
        raise ValueError(f"{item.kind} has one turn, this has {len(item.turns)}")
