"""How a model is asked to go on with prompts, and what comes back: the words that all engines share."""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import isfinite
from typing import Any, NamedTuple

Ids = list[int]


class Answer(NamedTuple):
    """Token ids without the token that ended them; `ended` is False where `max_tokens` cut them off."""

    ids: Ids
    ended: bool


@dataclass(frozen=True)
class Sampling:
    """`temperature` 0 takes the likeliest token; else one of the fewest tokens that hold `top_p` of the mass."""

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens={self.max_tokens}: must be 1 or more")
        if not (self.temperature >= 0 and isfinite(self.temperature)):
            raise ValueError(f"temperature={self.temperature}: must be 0 (greedy) or more, and finite")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p}: must be above 0 and at most 1")

    def seed_of(self, prompt: Ids, number: int) -> int:
        """The seed of one prompt, 48 bits, from nothing but `seed`, its ids and its number in the file."""
        name = f"{self.seed} {number} {prompt}"
        return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "little")


Sampler = Callable[[Sequence[Ids], Sequence[int], Sampling], list[Answer]]
"""(prompts, a seed for each, how) -> an answer for each."""
OpenSampler = Callable[[Any, int], AbstractContextManager[Sampler]]
"""(checkpoint, the most tokens of a prompt and its answer together)"""


@dataclass(frozen=True)
class Engine:
    """What answers: its name, what opens it, and how many prompts it is asked at a time."""

    name: str
    open: OpenSampler
    batch: int
