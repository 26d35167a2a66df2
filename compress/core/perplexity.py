"""Perplexity: exp of the mean nll in nats per token, with a standard error.

The independent samples are windows, not tokens, because the tokens of one window share context. Windows differ in their
numbers of tokens. So a mean over tokens is a ratio of two sums, and its standard error is that of a ratio estimator
(Cochran 1977, Sampling Techniques, section 6.5). The delta method turns the standard error of the mean nll into that of
the perplexity.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.core.errors import BadValueError


@dataclass(frozen=True)
class Estimate:
    """A mean and its standard error. For a single window the error is None."""

    value: float
    se: float | None


def window_mean(values: Tensor, windows: Tensor) -> Estimate:
    """The mean over tokens of `values` (count,). `windows` (count,) int64 holds the window of each token.

    Raises ValueError if there are 0 tokens.
    """
    tokens = torch.bincount(windows).double()
    return sums_mean(torch.zeros_like(tokens).index_add_(0, windows, values.double()), tokens)


def sums_mean(sums: Tensor, tokens: Tensor) -> Estimate:
    """The mean over tokens. `sums` are the sums of each window's values, `tokens` its numbers of tokens.

    Both are (windows,) float64. Raises ValueError if there are 0 tokens.
    """
    count, total = int((tokens > 0).sum()), tokens.sum()
    if not count:
        raise ValueError("core.perplexity: 0 tokens are scored; the windows' mask is empty")
    mean = sums.sum() / total
    if count < 2:
        return Estimate(mean.item(), None)
    variance = (sums - mean * tokens).square().sum() * count / (count - 1) / total.square()
    return Estimate(mean.item(), variance.sqrt().item())


def exponential(estimate: Estimate) -> Estimate:
    """exp of an estimate. It turns an nll into a perplexity, and a difference of nlls into a ratio of perplexities.

    Raises ValueError if exp overflows: only a damaged model has a mean nll above 709 nats.
    """
    try:
        value = math.exp(estimate.value)
    except OverflowError:
        raise BadValueError(
            f"core.perplexity: exp of {estimate.value:.0f} nats per token overflows; the model is damaged"
        ) from None
    return Estimate(value, None if estimate.se is None else value * estimate.se)


def next_token_nll(log_probs: Tensor, tokens: Tensor) -> Tensor:
    """The nll of each next token, (count,) nats, from log-probabilities (count, vocab) and `tokens` (count,)."""
    return -log_probs.gather(1, tokens[:, None])[:, 0]
