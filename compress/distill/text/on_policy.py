"""On-policy text: the student writes the second part of each window, and the teacher scores the written tokens.

Agarwal et al. 2023, https://arxiv.org/abs/2306.13649. Tokens are drawn at temperature 1. The random numbers depend only
on seed, step and row, so a repeated step draws the same tokens. In a conversation the student writes from the beginning
of an answer.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from compress.distill.text.packing import Batch, attention, later_first_tokens

PROMPT = 0.5  # the prompt's share of a window, if no answer begins near the middle
NEAR = 0.25  # how far from PROMPT an answer may begin, as a share of the window


@torch.no_grad()
def continue_windows(model: Any, batch: Batch, *, seed: int, step: int, vocab: int, end: int | None) -> Batch:
    """Windows of the same shape (batch, seq): each keeps its prompt, and `model` generates the rest.

    The loss mask covers only the generated tokens, up to and including the first `end`; later positions hold `end`.
    Generated tokens belong to the prompt's last document. Only ids below `vocab` are generated.
    """
    source, (count, length) = batch.ids.device, batch.ids.shape
    prompts = prompt_lengths(batch.mask, batch.documents).to(model.device)
    windows, _, documents = batch.to(model.device)
    documents = extend_last_document(documents, prompts)
    arguments, start = attention(documents, model), int(prompts.min())
    numbers = uniform_numbers(seed, step, count, length).to(model.device)
    ids = windows[:, :start]
    mask = torch.zeros(count, length, dtype=torch.bool, device=model.device)
    ended = torch.zeros(count, dtype=torch.bool, device=model.device)
    cache, new = None, ids
    for position in range(start, length):
        sliced = slice_attention(arguments, position - new.shape[1], position)
        out = model(new, past_key_values=cache, use_cache=True, logits_to_keep=1, **sliced)
        cache, logits = out.past_key_values, out.logits[:, -1, :vocab].float()
        generated = position >= prompts
        tokens = torch.where(generated, draw(logits, numbers[:, position]), windows[:, position])
        mask[:, position] = generated & ~ended
        if end is not None:
            tokens = torch.where(ended, end, tokens)
            ended = ended | (generated & (tokens == end))
        new = tokens[:, None]
        ids = torch.cat([ids, new], 1)
    return Batch(ids, mask, documents).to(source)


def extend_last_document(documents: Tensor | None, prompts: Tensor) -> Tensor | None:
    """Document numbers (batch, seq), changed so that the last document of each prompt fills the rest of the window."""
    if documents is None:
        return None
    positions = torch.arange(documents.shape[1], device=documents.device)
    return documents.where(positions < prompts[:, None], documents.gather(1, prompts[:, None] - 1))


def slice_attention(arguments: dict[str, Any], first: int, end: int) -> dict[str, Any]:
    """The results of `attention`, cut to the tokens `first` to `end` - 1."""
    if not arguments:
        return {}
    return {
        "position_ids": arguments["position_ids"][:, first:end],
        "attention_mask": arguments["attention_mask"][:, :, first:end, :end],
    }


def prompt_lengths(mask: Tensor, documents: Tensor | None = None) -> Tensor:
    """(batch,) int64: the number of prompt tokens in each window, 1 to seq - 1.

    A prompt ends where an answer begins, if that is near the middle; otherwise it ends in the middle. `mask` is the
    loss mask, (batch, seq).
    """
    length = mask.shape[1]
    middle = max(1, min(length - 1, int(PROMPT * length)))
    begins = mask[:, 1:] & ~mask[:, :-1]
    if documents is not None:  # a document's first token is masked too, but no answer begins after it
        begins[:, 1:] &= ~later_first_tokens(documents)[:, :-1]
    distance = (torch.arange(1, length, device=mask.device) - middle).abs().expand(len(mask), -1)
    distance = distance.masked_fill(~begins, length)
    nearest = distance.argmin(1) + 1
    return torch.where(distance.amin(1) <= NEAR * length, nearest, middle)


def uniform_numbers(seed: int, step: int, batch: int, count: int) -> Tensor:
    """(batch, count) numbers in [0, 1). Each row has a generator, so its numbers do not depend on `batch`."""
    seeds = [np.random.SeedSequence([seed % 2**32, step, row]).generate_state(1)[0] for row in range(batch)]
    generators = (torch.Generator().manual_seed(int(value)) for value in seeds)
    return torch.stack([torch.rand(count, generator=generator) for generator in generators])


def draw(logits: Tensor, numbers: Tensor) -> Tensor:
    """(batch,) token ids, drawn from the softmax of (batch, vocab) logits by (batch,) uniform numbers."""
    total = logits.softmax(-1).cumsum(-1)
    ids = torch.searchsorted(total, numbers[:, None] * total[:, -1:], right=True)
    return ids.squeeze(1).clamp(max=logits.shape[1] - 1)
