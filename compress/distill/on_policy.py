"""On-policy text: the student goes on from the beginnings of windows, and the teacher says what it thinks of that.

Agarwal et al. 2023, https://arxiv.org/abs/2306.13649. Tokens are drawn at temperature 1 by numbers that follow from
seed, step and row alone, so that a step can be made again.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

PROMPT = 0.5  # of a window


@torch.no_grad()
def continue_windows(
    model: Any, ids: Tensor, *, seed: int, step: int, vocab: int, end: int | None, prompt: float = PROMPT
) -> tuple[Tensor, Tensor]:
    """(batch, seq) ids -> ids of the same shape, rewritten after the first `prompt` of each, and which ones count.

    A row that says `end` is over: what follows is filled with `end` and does not count. Only the first `vocab` ids are
    ever said.
    """
    batch, length = ids.shape
    start = max(1, min(length - 1, int(prompt * length)))
    draws = uniform_numbers(seed, step, batch, length - start).to(model.device)
    made = ids[:, :start].to(model.device)
    counts = torch.zeros(batch, length, dtype=torch.bool, device=model.device)
    over = torch.zeros(batch, dtype=torch.bool, device=model.device)
    memory, new = None, made
    for place in range(length - start):
        out = model(new, past_key_values=memory, use_cache=True, logits_to_keep=1)
        memory, logits = out.past_key_values, out.logits[:, -1, :vocab].float()
        said = draw(logits, draws[:, place])
        counts[:, start + place] = ~over
        if end is not None:
            said = torch.where(over, end, said)
            over = over | (said == end)
        new = said[:, None]
        made = torch.cat([made, new], 1)
    return made.to(ids.device), counts.to(ids.device)


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
