"""Greedy answers of a checkpoint, as token ids: prompts in, continuations out. What asks does not know the engine."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

from compress.checkpoint.load import load_model, stop_tokens
from compress.checkpoint.read import Checkpoint
from compress.core.sampling import Ids, Sampling
from compress.model.sample import continue_prompts

Engine = Callable[[Sequence[Ids], int], list[Ids]]
"""(prompts, max_tokens) -> what follows each prompt, without the token that ended it."""
OpenEngine = Callable[[Checkpoint], AbstractContextManager[Engine]]


def placed_model(checkpoint: Checkpoint) -> Any:
    """The checkpoint in float32, packed linears dequantized, on the GPU where torch finds one."""
    model: Any = load_model(checkpoint)
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def transformers_engine(checkpoint: Checkpoint) -> Iterator[Engine]:
    """Greedy answers of `placed_model`."""
    model = placed_model(checkpoint)
    stops = stop_tokens(checkpoint)

    def engine(prompts: Sequence[Ids], max_tokens: int) -> list[Ids]:
        return [answer.ids for answer in continue_prompts(model, prompts, Sampling(max_tokens), stops)]

    yield engine
