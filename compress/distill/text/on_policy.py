"""On-policy text: the student goes on from the beginnings of windows, and the teacher says what it thinks of that.

Agarwal et al. 2023, https://arxiv.org/abs/2306.13649. Tokens are drawn at temperature 1 by numbers that follow from
seed, step and row alone, so that a step can be made again. In a conversation the student begins where an answer does.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from compress.distill.text.packing import Batch, attention, unannounced

PROMPT = 0.5  # of a window is what the student goes on from, where no answer begins near there
NEAR = 0.25  # of a window, to either side


@torch.no_grad()
def continue_windows(model: Any, batch: Batch, *, seed: int, step: int, vocab: int, end: int | None) -> Batch:
    """(batch, seq) windows -> as many, each gone on with after its prompt, and which tokens count.

    Where there are documents the student goes on with the prompt's last one, and sees it alone.

    A row that says `end` is over: what follows is filled with `end` and does not count. Only the first `vocab` ids are
    ever said.
    """
    home, (count, length) = batch.ids.device, batch.ids.shape
    prompts = prompt_lengths(batch.mask, batch.documents).to(model.device)
    given, _, documents = batch.to(model.device)
    documents = going_on(documents, prompts)
    apart, start = attention(documents, model), int(prompts.min())
    draws = uniform_numbers(seed, step, count, length).to(model.device)
    made = given[:, :start]
    counts = torch.zeros(count, length, dtype=torch.bool, device=model.device)
    over = torch.zeros(count, dtype=torch.bool, device=model.device)
    memory, new = None, made
    for place in range(start, length):
        seen = at_places(apart, place - new.shape[1], place)
        out = model(new, past_key_values=memory, use_cache=True, logits_to_keep=1, **seen)
        memory, logits = out.past_key_values, out.logits[:, -1, :vocab].float()
        own = place >= prompts
        said = torch.where(own, draw(logits, draws[:, place]), given[:, place])
        counts[:, place] = own & ~over
        if end is not None:
            said = torch.where(over, end, said)
            over = over | (own & (said == end))
        new = said[:, None]
        made = torch.cat([made, new], 1)
    return Batch(made, counts, documents).to(home)


def going_on(documents: Tensor | None, prompts: Tensor) -> Tensor | None:
    """(batch, seq) documents when the last one of each prompt goes on to the window's end."""
    if documents is None:
        return None
    places = torch.arange(documents.shape[1], device=documents.device)
    return documents.where(places < prompts[:, None], documents.gather(1, prompts[:, None] - 1))


def at_places(apart: dict[str, Any], first: int, end: int) -> dict[str, Any]:
    """What keeps documents apart, of the tokens from `first` to before `end`, which see those before `end`."""
    if not apart:
        return {}
    return {
        "position_ids": apart["position_ids"][:, first:end],
        "attention_mask": apart["attention_mask"][:, :, first:end, :end],
    }


def prompt_lengths(mask: Tensor, documents: Tensor | None = None) -> Tensor:
    """(batch, seq) mask -> (batch,) int64, from 1 to seq - 1: where the answer nearest to the middle begins, or it."""
    length = mask.shape[1]
    middle = max(1, min(length - 1, int(PROMPT * length)))
    begins = mask[:, 1:] & ~mask[:, :-1]
    if documents is not None:  # of a document the first token does not count, but what follows it is no answer
        begins[:, 1:] &= ~unannounced(documents)[:, :-1]
    away = (torch.arange(1, length, device=mask.device) - middle).abs().expand(len(mask), -1)
    away = away.masked_fill(~begins, length)
    nearest = away.argmin(1) + 1
    return torch.where(away.amin(1) <= NEAR * length, nearest, middle)


def uniform_numbers(seed: int, step: int, batch: int, count: int) -> Tensor:
    """(batch, count) in [0, 1): a generator per row, so that more rows never change a row."""
    seeds = [np.random.SeedSequence([seed % 2**32, step, row]).generate_state(1)[0] for row in range(batch)]
    rows = (torch.Generator().manual_seed(int(one)) for one in seeds)
    return torch.stack([torch.rand(count, generator=generator) for generator in rows])


def draw(logits: Tensor, numbers: Tensor) -> Tensor:
    """One id per row of (batch, vocab) logits, by its probability: where the running sum passes the row's number."""
    total = logits.softmax(-1).cumsum(-1)
    found = torch.searchsorted(total, numbers[:, None] * total[:, -1:], right=True)
    return found.squeeze(1).clamp(max=logits.shape[1] - 1)
