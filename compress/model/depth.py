"""Depth pruning: find the run of consecutive blocks whose removal changes the model least, measured by KL.

Every possible start of the run is a candidate. All candidates are computed in one pass, with one block in memory at a
time. Before the removed blocks, a candidate equals the teacher. So only the blocks after them are computed for each
candidate.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from compress.core.errors import BadValueError
from compress.model.blocks import BlockModel, Weights


def remaining_blocks(count: int, start: int, removed: int) -> tuple[int, ...]:
    """The indices of the remaining blocks, if `removed` of `count` blocks are removed from block `start` on."""
    return (*range(start), *range(start + removed, count))


def choose_blocks(kl: dict[int, float], count: int, removed: int) -> tuple[int, ...]:
    """The indices of the blocks to keep, from the KLs of `sweep_depth`.

    The removed blocks begin at the start with the smallest KL. If several starts have this KL, the first one is taken.
    """
    return remaining_blocks(count, min(kl, key=lambda start: (kl[start], start)), removed)


@torch.no_grad()
def sweep_depth(
    config: dict[str, Any],
    weights: Weights,
    removed: int,
    ids: Tensor,
    mask: Tensor,
    vocab: int | None = None,
    *,
    device: torch.device | str = "cpu",
) -> dict[int, float]:
    """Measure mean KL(teacher ‖ candidate) in nats over the tokens in `mask`. The keys are the candidates' starts.

    A candidate is the teacher without `removed` blocks from its start on. The first and the last block are always kept,
    or one of them if only one block remains. `ids` and `mask` are (n_samples, seq_len). Only the first `vocab` logits
    are compared: the others are padding. Raises ValueError if `removed` is not below the number of blocks, or if all
    tokens are masked.
    """
    model = BlockModel(config, weights, device=device)
    if not 1 <= removed < len(model):
        raise BadValueError(f"model.depth: cannot remove {removed} of {len(model)} blocks")
    if not mask[:, 1:].any():
        raise BadValueError(f"model.depth: all {mask.numel()} tokens are masked; give text with tokens to predict")
    with model.embedding_and_norm():
        teacher, candidates = run_all(model, removed, ids)
    with model.embedding_and_norm(head=True):
        return mean_kl(model, teacher, candidates, mask, vocab)


def run_all(model: BlockModel, removed: int, ids: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
    """The states (n_samples, seq_len, hidden) after the last block: those of the teacher, and of each candidate."""
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
    """Mean KL(teacher ‖ candidate) of the next token in nats, by the candidate's start.

    The logits of one window are in memory at a time.
    """
    totals = dict.fromkeys(candidates, 0.0)
    mask = mask.to(model.device)
    for window, keep in enumerate(mask[:, 1:]):
        targets = log_probabilities(model, teacher[window], keep, vocab)
        for start, hidden in candidates.items():
            outputs = log_probabilities(model, hidden[window], keep, vocab)
            totals[start] += kl_div(outputs, targets, reduction="sum", log_target=True).item()
    return {start: total / int(mask[:, 1:].sum()) for start, total in totals.items()}


def log_probabilities(model: BlockModel, hidden: Tensor, keep: Tensor, vocab: int | None) -> Tensor:
    """The log-probabilities (tokens, vocab) at the positions in `keep`, for states (seq_len, hidden)."""
    return log_softmax(model.logits(hidden[None])[0, :-1, :vocab][keep].float(), -1)
