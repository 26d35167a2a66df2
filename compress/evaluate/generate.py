"""Greedy answers of a checkpoint, as token ids: prompts in, continuations out. What asks does not know the engine."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch

from compress.checkpoint.load import load_model, load_tokenizer
from compress.checkpoint.read import read_json

Ids = list[int]
Engine = Callable[[Sequence[Ids], int], list[Ids]]
"""(prompts, max_tokens) -> what follows each prompt, without the token that ended it."""
OpenEngine = Callable[[Path], AbstractContextManager[Engine]]


@contextmanager
def transformers_engine(path: Path) -> Iterator[Engine]:
    """The checkpoint in float32, packed linears dequantized, on the GPU where torch finds one."""
    model: Any = load_model(path)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    stops = stop_tokens(path)
    yield lambda prompts, max_tokens: continue_prompts(model, prompts, max_tokens, stops)


def stop_tokens(path: Path) -> set[int]:
    """The ids that end an answer: the tokenizer's, and those of config.json and generation_config.json."""
    found: list[Any] = [load_tokenizer(path).eos_token_id]
    for name in ("config.json", "generation_config.json"):
        if (path / name).is_file():
            value = read_json(path / name).get("eos_token_id")
            found += value if isinstance(value, list) else [value]
    return {token for token in found if isinstance(token, int)}


@torch.inference_mode()
def continue_prompts(model: Any, prompts: Sequence[Ids], max_tokens: int, stops: set[int]) -> list[Ids]:
    """Greedy continuations, up to the first of `stops` or `max_tokens`. Prompts are padded on the left, and masked."""
    length, pad = max(map(len, prompts)), min(stops, default=0)
    ids = torch.tensor([[pad] * (length - len(prompt)) + prompt for prompt in prompts], device=model.device)
    mask = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=model.device)
    made = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=max_tokens,
        do_sample=False,
        eos_token_id=sorted(stops) or None,
        pad_token_id=pad,
    )
    return [before_stop(row, stops) for row in made[:, length:].tolist()]


def before_stop(ids: Ids, stops: set[int]) -> Ids:
    end = next((place for place, token in enumerate(ids) if token in stops), len(ids))
    return ids[:end]
