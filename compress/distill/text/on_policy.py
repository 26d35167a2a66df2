"""On-policy text: the student continues the beginnings of windows, and the teacher scores what it generated.

Agarwal et al. 2023, https://arxiv.org/abs/2306.13649. Tokens are drawn at temperature 1 with random numbers that depend
on seed, step and row only, so a step can be repeated. In a conversation the student begins where an answer begins.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from compress.distill.text.packing import Batch, attention, later_first_tokens

PROMPT = 0.5  # share of a window that is the prompt, if no answer begins near there
NEAR = 0.25  # largest distance between an answer's beginning and PROMPT, as a share of the window


@torch.no_grad()
def continue_windows(model: Any, batch: Batch, *, seed: int, step: int, vocab: int, end: int | None) -> Batch:
    """(batch, seq) windows -> windows of the same shape: the prompt, then generated tokens, which alone count.

    Generated tokens belong to the prompt's last document. After `end` a row is filled with `end`, which does not count.
    Only the first `vocab` ids are generated.
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
    """(batch, seq) documents, in which the last document of each prompt extends to the end of the window."""
    if documents is None:
        return None
    positions = torch.arange(documents.shape[1], device=documents.device)
    return documents.where(positions < prompts[:, None], documents.gather(1, prompts[:, None] - 1))


def slice_attention(arguments: dict[str, Any], first: int, end: int) -> dict[str, Any]:
    """The arguments of `attention` for the tokens from `first` to before `end`."""
    if not arguments:
        return {}
    return {
        "position_ids": arguments["position_ids"][:, first:end],
        "attention_mask": arguments["attention_mask"][:, :, first:end, :end],
    }


def prompt_lengths(mask: Tensor, documents: Tensor | None = None) -> Tensor:
    """(batch, seq) mask -> (batch,) int64, 1 to seq - 1: where an answer near the middle begins, else the middle."""
    length = mask.shape[1]
    middle = max(1, min(length - 1, int(PROMPT * length)))
    begins = mask[:, 1:] & ~mask[:, :-1]
    if documents is not None:  # first tokens of documents are masked too, but no answer follows them
        begins[:, 1:] &= ~later_first_tokens(documents)[:, :-1]
    distance = (torch.arange(1, length, device=mask.device) - middle).abs().expand(len(mask), -1)
    distance = distance.masked_fill(~begins, length)
    nearest = distance.argmin(1) + 1
    return torch.where(distance.amin(1) <= NEAR * length, nearest, middle)


def uniform_numbers(seed: int, step: int, batch: int, count: int) -> Tensor:
    """(batch, count) in [0, 1). Each row has its generator, so a row does not depend on the number of rows."""
    seeds = [np.random.SeedSequence([seed % 2**32, step, row]).generate_state(1)[0] for row in range(batch)]
    generators = (torch.Generator().manual_seed(int(value)) for value in seeds)
    return torch.stack([torch.rand(count, generator=generator) for generator in generators])


def draw(logits: Tensor, numbers: Tensor) -> Tensor:
    """(batch, vocab) logits, (batch,) uniform numbers -> (batch,) ids, drawn from the softmax by inverting its sum."""
    total = logits.softmax(-1).cumsum(-1)
    ids = torch.searchsorted(total, numbers[:, None] * total[:, -1:], right=True)
    return ids.squeeze(1).clamp(max=logits.shape[1] - 1)
