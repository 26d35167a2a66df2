"""Whether windows begin with a start token: measured on the model, not read from its tokenizer.

A model's files do not record whether it was trained with a start token, and some tokenizers omit one that the model
needs. One 26M chat model has perplexity 79 with its start token and above 200,000 without it. Calibrated without the
token, its quantized form has two to three times the KL. So the same tokens are scored both ways, and the better way is
used for every window.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class StartToken:
    """`token` begins every window; None: no start token. The nlls are nats per token, over the same tokens.

    `nll_with` is None if the model has no start token.
    """

    token: int | None
    nll_with: float | None
    nll_without: float


def choose_start(ids: Tensor, start_token: int | None, nll: Callable[[Tensor, int], float]) -> StartToken:
    """Score `ids` with and without `start_token` before them; the token is kept only if it strictly lowers the nll.

    `ids` (n, length) int64 are windows of plain text, without the token. `nll(windows, first)` returns the mean nll
    in nats of windows[:, first:], each token predicted from all before it. Both calls score ids[:, 1:]: without
    a start token, nothing precedes the first token. Raises ValueError for a nll of nan.
    """
    without = _number(nll(ids, 1), "without")
    if start_token is None:
        return StartToken(None, None, without)
    start = torch.full_like(ids[:, :1], start_token)
    with_token = _number(nll(torch.cat([start, ids], dim=1), 2), "with")
    return StartToken(start_token if with_token < without else None, with_token, without)


def _number(nll: float, how: str) -> float:
    if math.isnan(nll):
        raise ValueError(f"calibration.start: the nll {how} the start token is nan; the model's weights are broken")
    return float(nll)


def format_start_token(token: int | None) -> int | str:
    """A start token as reports show it: its id, or "none"."""
    return "none" if token is None else token
