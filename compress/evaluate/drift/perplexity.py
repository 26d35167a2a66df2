"""Perplexity: exp of the mean nll in nats per token, with a standard error.

The sampling unit is the window: tokens of one window lean on the same text, so counting each as an observation would
promise more than was seen. A mean over all tokens of windows that differ in length is a ratio of two sums; its
standard error is that of the ratio estimator (Cochran 1977, Sampling Techniques, section 6.5), and exp carries it by
the delta method.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Estimate:
    """A mean and its standard error; the error is None where one window was all there was."""

    value: float
    se: float | None


def window_mean(values: Tensor, windows: Tensor) -> Estimate:
    """The mean over tokens of `values` (count,), each from the window that `windows` (count,) int64 names.

    Raises ValueError when there is no token.
    """
    if not len(values):
        raise ValueError("evaluate.perplexity: 0 tokens are scored; the windows' mask is empty")
    tokens = torch.bincount(windows).double()
    sums = torch.zeros_like(tokens).index_add_(0, windows, values.double())
    count, total = int((tokens > 0).sum()), tokens.sum()
    mean = sums.sum() / total
    if count < 2:
        return Estimate(mean.item(), None)
    variance = (sums - mean * tokens).square().sum() * count / (count - 1) / total.square()
    return Estimate(mean.item(), variance.sqrt().item())


def exponential(estimate: Estimate) -> Estimate:
    """exp of an estimate: nll -> perplexity, a difference of nlls -> a ratio of perplexities.

    Raises ValueError where that is beyond a float: only a broken model is 709 nats wrong about every token.
    """
    try:
        value = math.exp(estimate.value)
    except OverflowError:
        raise ValueError(
            f"evaluate.perplexity: exp of {estimate.value:.0f} nats a token; the model is broken"
        ) from None
    return Estimate(value, None if estimate.se is None else value * estimate.se)


def next_token_nll(log_probs: Tensor, tokens: Tensor) -> Tensor:
    """(count, vocab) log-probabilities and the (count,) tokens that came -> (count,) nats."""
    return -log_probs.gather(1, tokens[:, None])[:, 0]
