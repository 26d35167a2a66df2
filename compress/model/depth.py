"""Depth pruning: find the contiguous run of blocks whose removal changes the model least, measured by KL.

Every start of that run is one candidate. All candidates are computed in one pass, with one block in memory at a time.
Before its gap a candidate equals the teacher, so only the blocks after the gap are computed per candidate.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from compress.model.blocks import BlockModel, Weights


def remaining_blocks(count: int, start: int, removed: int) -> tuple[int, ...]:
    """The blocks that remain of `count` when `removed` blocks are cut out at `start`."""
    return (*range(start), *range(start + removed, count))


def choose_blocks(kl: dict[int, float], count: int, removed: int) -> tuple[int, ...]:
    """The blocks to keep according to `sweep_depth`: the start with the smallest KL; the first start wins a tie."""
    return remaining_blocks(count, min(kl, key=lambda start: (kl[start], start)), removed)


@torch.no_grad()
def sweep_depth(
    config: dict[str, Any], weights: Weights, removed: int, ids: Tensor, mask: Tensor, vocab: int | None = None
) -> dict[int, float]:
    """{start of the gap: mean KL(teacher ‖ teacher without the gap)} in nats, over the tokens in `mask`.

    `ids` and `mask` are (n_samples, seq_len). The first and the last block are kept, or one of them if only one block
    remains. `vocab` leaves out padding logits. ValueError if no block can be removed or no token counts.
    """
    model = BlockModel(config, weights)
    if not 1 <= removed < len(model):
        raise ValueError(f"model.depth: cannot remove {removed} of {len(model)} blocks")
    if not mask[:, 1:].any():
        raise ValueError(f"model.depth: none of the {mask.numel()} tokens is scored; give text with tokens to predict")
    with model.embedding_and_norm():
        teacher, candidates = run_all(model, removed, ids)
    with model.embedding_and_norm(head=True):
        return mean_kl(model, teacher, candidates, mask, vocab)


def run_all(model: BlockModel, removed: int, ids: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
    """(n_samples, seq_len, hidden) after the last block: the teacher's, and each candidate's by its start."""
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


def mean_kl(
    model: BlockModel, teacher: Tensor, candidates: dict[int, Tensor], mask: Tensor, vocab: int | None
) -> dict[int, float]:
    """{start: mean KL(teacher ‖ candidate)} of the next token in nats. One window's logits are in memory at a time."""
    totals = dict.fromkeys(candidates, 0.0)
    for window, keep in enumerate(mask[:, 1:]):
        targets = log_probabilities(model, teacher[window], keep, vocab)
        for start, hidden in candidates.items():
            outputs = log_probabilities(model, hidden[window], keep, vocab)
            totals[start] += kl_div(outputs, targets, reduction="sum", log_target=True).item()
    return {start: total / int(mask[:, 1:].sum()) for start, total in totals.items()}


def log_probabilities(model: BlockModel, hidden: Tensor, keep: Tensor, vocab: int | None) -> Tensor:
    """(seq_len, hidden) after the last block -> (tokens, vocab) log-probabilities at the positions in `keep`."""
    return log_softmax(model.logits(hidden[None])[0, :-1, :vocab][keep].float(), -1)
