"""Shorter: which contiguous run of blocks a model misses least, by the KL of what remains to the whole.

A sweep over every start of the run. All candidates go through the model together, one block in memory at a time: the
teacher's hidden states after block s are the candidate's input to the first block behind its gap, so no candidate
computes what comes before its gap.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from compress.model.blocks import BlockModel, Weights


def without(count: int, start: int, removed: int) -> tuple[int, ...]:
    """The blocks that stay when `removed` of `count` go, from `start` on."""
    return (*range(start), *range(start + removed, count))


def choose_blocks(kl: dict[int, float], count: int, removed: int) -> tuple[int, ...]:
    """The blocks to keep by a sweep's verdict: the start with the least KL, the first of equals."""
    return without(count, min(kl, key=lambda start: (kl[start], start)), removed)


@torch.no_grad()
def sweep_depth(
    config: dict[str, Any], weights: Weights, removed: int, ids: Tensor, mask: Tensor, vocab: int | None = None
) -> dict[int, float]:
    """Start of the gap -> mean KL(teacher ‖ teacher without the gap), nats, over the tokens that count.

    `ids`, `mask` (windows, seq_len) as from calibration. The first and the last block stay, one of them if only one
    block does. Logits beyond `vocab` tokens, padding, are left out. Deterministic.
    """
    model = BlockModel(config, weights)
    if not 1 <= removed < len(model):
        raise ValueError(f"model.depth: cannot remove {removed} of {len(model)} blocks")
    if not mask[:, 1:].any():
        raise ValueError(f"model.depth: none of {mask.numel()} tokens counts, so candidates cannot be compared")
    with model.embedding_and_norm():
        teacher, candidates = run_all(model, removed, ids)
    with model.embedding_and_norm(head=True):
        return compare(model, teacher, candidates, mask, vocab)


def run_all(model: BlockModel, removed: int, ids: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
    """(windows, seq_len, hidden) after the last block, of the teacher and of every candidate by its start."""
    teacher = model.embed(ids)
    candidates: dict[int, Tensor] = {}
    starts = range(1, len(model) - removed) or (0, 1)
    for index, block in model.in_order():
        if index in starts:
            candidates[index] = teacher
        run = model.runner(block, index)
        for start, hidden in candidates.items():
            if index >= start + removed:
                candidates[start] = run(hidden)
        teacher = run(teacher)
    return teacher, candidates


def compare(
    model: BlockModel, teacher: Tensor, candidates: dict[int, Tensor], mask: Tensor, vocab: int | None
) -> dict[int, float]:
    """Mean KL(teacher ‖ candidate) of the next token, over tokens that count; one window's logits at a time."""
    totals = dict.fromkeys(candidates, 0.0)
    for window, keep in enumerate(mask[:, 1:]):
        targets = log_probabilities(model, teacher[window], keep, vocab)
        for start, hidden in candidates.items():
            outputs = log_probabilities(model, hidden[window], keep, vocab)
            totals[start] += kl_div(outputs, targets, reduction="sum", log_target=True).item()
    return {start: total / int(mask[:, 1:].sum()) for start, total in totals.items()}


def log_probabilities(model: BlockModel, hidden: Tensor, keep: Tensor, vocab: int | None) -> Tensor:
    """(seq_len, hidden) after the last block -> (kept, vocab): what each kept next token is predicted from."""
    return log_softmax(model.logits(hidden[None])[0, :-1, :vocab][keep].float(), -1)
