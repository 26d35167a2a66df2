"""How a window must begin: measured on the model, not read off its tokenizer.

Whether a model was trained with a start token before every sequence is not in its files: tokenizers that add none
belong to models that need one. A real 26M chat model has perplexity 79 with its start token and above 200,000
without, though its tokenizer does not add it; calibrated without, its quantized form is two to three times further
from it. So the same tokens are scored both ways, and the better way is used wherever the model reads a window.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class StartToken:
    """The verdict: `token` begins every window, or None. The nlls are nats per token, over the same tokens.

    `nll_with` is None where there is no start token to try.
    """

    token: int | None
    nll_with: float | None
    nll_without: float


def choose_start(ids: Tensor, start_token: int | None, nll: Callable[[Tensor, int], float]) -> StartToken:
    """Score `ids` with and without `start_token` before them; the token is kept only if it strictly lowers the nll.

    `ids` (n, length) int64 are windows of plain text, without the token. `nll(windows, first)` returns the mean nll
    in nats of windows[:, first:], each token predicted from all before it. Both calls score ids[:, 1:]: the first
    token of a window without a start token has nothing to be predicted from. Raises ValueError on a nll of nan.
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
    """A start token as reports tell it: its id, or "none"."""
    return "none" if token is None else token
