"""The settings of sampling, and the answer of a model: the types that all runtimes share."""

import hashlib
from dataclasses import dataclass
from math import isfinite
from typing import NamedTuple

from compress.core.errors import BadValueError

Ids = list[int]


class Answer(NamedTuple):
    """The token ids of an answer, without the final stop token. `ended` is False if `max_tokens` cut the answer off."""

    ids: Ids
    ended: bool


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Temperature 0 means greedy decoding.

    Otherwise the token is drawn from the smallest set of tokens whose total probability is at least `top_p`.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise BadValueError(f"max_tokens={self.max_tokens}: must be 1 or more")
        if not (self.temperature >= 0 and isfinite(self.temperature)):
            raise BadValueError(f"temperature={self.temperature}: must be 0 (greedy) or more, and finite")
        if not 0 < self.top_p <= 1:
            raise BadValueError(f"top_p={self.top_p}: must be above 0 and at most 1")

    def seed_of(self, prompt: Ids, number: int) -> int:
        """The 48-bit seed for one prompt. It depends only on `seed`, the prompt's ids, and its number in the file."""
        name = f"{self.seed} {number} {prompt}"
        return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "little")
