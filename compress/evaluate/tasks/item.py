"""Items, scores, and the description of a kind of task."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compress.sandbox.run import SandboxError

EMPTY = "empty"
ALL = "all"  # the kind of a row that has the mean over the kinds
Expected = Mapping[str, Any]


@dataclass(frozen=True)
class Score:
    """The score of an answer, 0 to 1, and its reason. `value` is None if the scorer failed."""

    value: float | None
    reason: str


@dataclass(frozen=True)
class Item:
    """One task: the turns of the user, and the expected answers in the form that its kind defines."""

    id: str
    kind: str
    language: str
    turns: tuple[str, ...]
    expected: Expected


@dataclass(frozen=True)
class Kind:
    """A kind of task.

    `instruction` precedes the first turn; its keys are languages. An answer has at most `max_tokens` tokens. `check`
    raises ValueError if an item is malformed. `score` is a pure function. `example` returns answers that a working
    scorer can score, one per turn.
    """

    name: str
    max_tokens: int
    instruction: Mapping[str, str]
    check: Callable[[Item], None]
    score: Callable[[Expected, Sequence[str]], Score]
    example: Callable[[Expected], list[str]]

    def first_turn(self, item: Item) -> str:
        """The first turn, preceded by the instruction in its language, or else in English."""
        instruction = self.instruction.get(item.language, self.instruction["en"])
        return f"{instruction}\n\n{item.turns[0]}" if instruction else item.turns[0]


def score_item(kind: Kind, item: Item, answers: Sequence[str]) -> Score:
    """The score of a model's answers, one per turn.

    An answer that makes the scorer fail scores 0. The value is None only if the scorer fails on its example too.
    """
    score = score_answers(kind, item.expected, answers)
    return blame(score, lambda: score_answers(kind, item.expected, kind.example(item.expected)))


def blame(score: Score, score_example: Callable[[], Score]) -> Score:
    """The score of an answer, with 0 in place of None if the scorer works on its example.

    If the scorer fails on its example too, the scorer is at fault, not the answer, and the value stays None.
    """
    if score.value is not None or score_example().value is None:
        return score
    return Score(0.0, f"cannot be scored: {score.reason}")


def score_answers(kind: Kind, expected: Expected, answers: Sequence[str]) -> Score:
    """The score of a model's answers. The value is None if the scorer raises an exception.

    Raises SandboxError if the sandbox does not work on this machine. No answer can cause this error.
    """
    if not any(answer.strip() for answer in answers):
        return Score(0.0, EMPTY)
    try:
        return kind.score(expected, answers)
    except SandboxError:
        raise
    except Exception as error:
        return Score(None, f"error: {type(error).__name__}: {error}")


def check_texts(value: Any, what: str) -> None:
    """Raises ValueError if `value` is not a list of texts, or is empty, or contains a blank text."""
    if not (isinstance(value, list) and value and all(isinstance(text, str) and text.strip() for text in value)):
        raise ValueError(f"{what} must be a list of texts that are not blank")


def check_one_turn(item: Item) -> None:
    """Raises ValueError if the item does not have exactly one turn."""
    if len(item.turns) != 1:
        raise ValueError(f"turns: {item.kind} needs exactly one turn, not {len(item.turns)}")
