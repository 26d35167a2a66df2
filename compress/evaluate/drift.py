"""Drift: how far a candidate's next-token distributions are from the reference's.

    KL(reference ‖ candidate) = Σ p_reference (log p_reference - log p_candidate), in nats, one number a token

with top-1 agreement and the ratio of perplexities. All are differences on the same tokens, so their standard errors
are those of paired observations: far smaller than the error of either perplexity alone.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from calibration.windows import Windows
from compress.evaluate.perplexity import Estimate, exponential, next_token_nll, window_mean
from compress.evaluate.reading import Reading, Row, refuse_not_finite, scored_places

CHUNK = 256
QUANTILES = {"kl_median": 0.5, "kl_p95": 0.95, "kl_p99": 0.99}


@dataclass(frozen=True)
class TokenDrift:
    """What was seen at every scored token, each (count,): its window, both nlls and the KL in nats, same top token."""

    window: Tensor
    reference_nll: Tensor
    nll: Tensor
    kl: Tensor
    agrees: Tensor


@torch.no_grad()
def token_drift(
    reference: Reading, candidate: Reading, windows: Windows, *, vocabulary: int, chunk: int = CHUNK
) -> TokenDrift:
    """The drift at every token that counts in the windows' mask, over the first `vocabulary` tokens.

    Logits exist for `chunk` tokens at a time: it changes the speed and the memory, never the result. Raises
    QCompressError, with the checkpoint and the first window, when a number is not finite.
    """
    places = scored_places(windows.mask)
    parts = []
    with reference.head(), candidate.head():
        for part in places.split(chunk):
            tokens = windows.ids[part[:, 0], part[:, 1] + 1]
            ours, theirs = (reading.logits(part)[:, :vocabulary] for reading in (reference, candidate))
            parts.append(compare_chunk(ours, theirs, tokens))
    reference_nll, nll, kl, agrees = (torch.cat(column) for column in zip(*parts, strict=True))
    refuse_not_finite(reference.path, reference_nll, places, "nll")
    refuse_not_finite(candidate.path, nll, places, "nll")
    refuse_not_finite(candidate.path, kl, places, "KL")
    return TokenDrift(places[:, 0], reference_nll, nll, kl, agrees)


def compare_chunk(reference: Tensor, candidate: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(count, vocab) logits of both and the (count,) tokens that came -> both nlls, KL, same top token; (count,)."""
    reference, candidate = log_probabilities(reference), log_probabilities(candidate)
    nlls = next_token_nll(reference, tokens), next_token_nll(candidate, tokens)
    agrees = reference.argmax(-1) == candidate.argmax(-1)
    kl = torch.linalg.vecdot(reference.exp(), reference.sub_(candidate))  # in place: 50 MB fewer to allocate
    return *nlls, kl, agrees


def log_probabilities(logits: Tensor) -> Tensor:
    """(count, vocab) logits -> log-probabilities, float32.

    `log_softmax` sums a row in order, and beside a likely token the far tail is lost: its nll of SmolLM2-135M is
    1.6e-5 nats too low. `logsumexp` sums in pairs and is 3e-9 off.
    """
    return logits - logits.logsumexp(-1, keepdim=True)


def summarize_drift(drift: TokenDrift) -> Row:
    """The report row's figures, each mean with its standard error, which is None for a single window."""
    ratio = exponential(window_mean(drift.nll.double() - drift.reference_nll.double(), drift.window))
    quantiles = torch.quantile(drift.kl.double(), torch.tensor(list(QUANTILES.values()), dtype=torch.float64))
    return {
        **with_error("perplexity", exponential(window_mean(drift.nll, drift.window))),
        **with_error("perplexity_ratio", ratio),
        **with_error("kl", window_mean(drift.kl, drift.window)),
        **dict(zip(QUANTILES, quantiles.tolist(), strict=True)),
        **with_error("top1", window_mean(drift.agrees, drift.window)),
    }


def reference_figures(drift: TokenDrift) -> Row:
    """The reference's perplexity, and what it is to itself."""
    itself = TokenDrift(
        drift.window,
        drift.reference_nll,
        drift.reference_nll,
        torch.zeros_like(drift.kl),
        torch.ones_like(drift.agrees),
    )
    return summarize_drift(itself)


def with_error(name: str, estimate: Estimate) -> Row:
    return {name: estimate.value, f"{name}_se": estimate.se}
