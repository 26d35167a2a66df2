"""Drift: how far a candidate's next-token distributions are from the reference's.

    KL(reference ‖ candidate) = Σ p_reference (log p_reference - log p_candidate), in nats, one number a token

with top-1 and top-5 agreement and the ratio of perplexities. All are differences on the same tokens, so their standard
errors are those of paired observations: far smaller than the error of either perplexity alone.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from calibration.windows import Windows
from compress.evaluate.drift.hidden_states import HiddenStates, Row, refuse_not_finite, scored_places
from compress.evaluate.drift.interval import mean_interval, perplexity_intervals
from compress.evaluate.drift.perplexity import Estimate, exponential, next_token_nll, window_mean

CHUNK = 256  # tokens whose logits exist at once: enough for the head's matrix product
STRIP_LOGITS = 1_572_864  # of a chunk compared at once, 6 MB of each model: what the passes over them find in the cache
FIRST = 5  # of the candidate's tokens, for top-5 agreement
PREFERRED = 3  # tokens that are shown of each model
WORST = 20
QUANTILES = {"kl_median": 0.5, "kl_p95": 0.95, "kl_p99": 0.99}


@dataclass(frozen=True)
class TokenDrift:
    """What was seen at every scored token, each (count,): both nlls and the KL in nats, and two agreements.

    `agrees`: the reference's likeliest token is the candidate's too; `agrees5`: it is among the candidate's FIRST.
    `places` (count, 2) are window and position of the logits; `worst` what stands at the WORST of them.
    """

    places: Tensor
    reference_nll: Tensor
    nll: Tensor
    kl: Tensor
    agrees: Tensor
    agrees5: Tensor
    worst: "Preferred | None" = None

    @property
    def window(self) -> Tensor:
        """(count,) the window of every scored token: the sampling unit."""
        return self.places[:, 0]


@dataclass(frozen=True)
class Preferred:
    """The tokens that both models find likeliest at a few places, the furthest apart first.

    `index` (few,) points into the scored tokens; ids and probabilities of both are (few, PREFERRED).
    """

    index: Tensor
    reference_ids: Tensor
    reference_probabilities: Tensor
    candidate_ids: Tensor
    candidate_probabilities: Tensor


@torch.no_grad()
def token_drift(
    reference: HiddenStates, candidate: HiddenStates, windows: Windows, *, vocabulary: int, chunk: int = CHUNK
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
            parts += compare_strips(ours, theirs, tokens)
        reference_nll, nll, kl, agrees, agrees5 = (torch.cat(column) for column in zip(*parts, strict=True))
        refuse_not_finite(reference.checkpoint, reference_nll, places, "nll")
        refuse_not_finite(candidate.checkpoint, nll, places, "nll")
        refuse_not_finite(candidate.checkpoint, kl, places, "KL")
        index = kl.topk(min(WORST, len(kl))).indices
        preferred = [
            preferred_tokens(reading.logits(places[index])[:, :vocabulary]) for reading in (reference, candidate)
        ]
    worst = Preferred(index, *preferred[0], *preferred[1])
    return TokenDrift(places, reference_nll, nll, kl, agrees, agrees5, worst)


def compare_strips(reference: Tensor, candidate: Tensor, tokens: Tensor) -> list[tuple[Tensor, ...]]:
    """`compare_chunk` of a few rows at a time. The logits are overwritten."""
    rows = max(1, STRIP_LOGITS // reference.shape[1])
    strips = zip(reference.split(rows), candidate.split(rows), tokens.split(rows), strict=True)
    return [compare_chunk(*strip) for strip in strips]


def compare_chunk(reference: Tensor, candidate: Tensor, tokens: Tensor) -> tuple[Tensor, ...]:
    """(count, vocab) logits of both and the (count,) tokens that came -> both nlls, KL, both agreements; each (count,).

    The logits are overwritten. Where the candidate finds several tokens equally likely, each of them is its first.
    """
    reference, candidate = log_probabilities(reference), log_probabilities(candidate)
    nlls = next_token_nll(reference, tokens), next_token_nll(candidate, tokens)
    wanted = candidate.gather(1, reference.argmax(-1, keepdim=True))
    first = candidate.topk(min(FIRST, candidate.shape[1])).values
    agrees, agrees5 = (wanted >= first[:, :1])[:, 0], (wanted >= first[:, -1:])[:, 0]
    kl = torch.linalg.vecdot(reference.exp(), reference.sub_(candidate))
    return *nlls, kl, agrees, agrees5


def log_probabilities(logits: Tensor) -> Tensor:
    """(count, vocab) logits -> log-probabilities, float32, in the same memory.

    `log_softmax` sums a row in order, and beside a likely token the far tail is lost: its nll of SmolLM2-135M is
    1.6e-5 nats too low. `logsumexp` sums in pairs and is 3e-9 off.
    """
    return logits.sub_(logits.logsumexp(-1, keepdim=True))


def preferred_tokens(logits: Tensor) -> tuple[Tensor, Tensor]:
    """(few, vocab) logits -> the PREFERRED likeliest ids and their probabilities, each (few, PREFERRED)."""
    found = log_probabilities(logits).topk(min(PREFERRED, logits.shape[1]))
    return found.indices, found.values.exp()


def summarize_drift(drift: TokenDrift) -> Row:
    """The report row's figures, each mean with its standard error, which is None for a single window."""
    ratio = exponential(window_mean(drift.nll.double() - drift.reference_nll.double(), drift.window))
    quantiles = torch.quantile(drift.kl.double(), torch.tensor(list(QUANTILES.values()), dtype=torch.float64))
    low, high = mean_interval(drift.kl, drift.window)
    return {
        **with_error("perplexity", exponential(window_mean(drift.nll, drift.window))),
        **with_error("perplexity_ratio", ratio),
        **perplexity_intervals(drift.reference_nll, drift.nll, drift.window),
        **with_error("kl", window_mean(drift.kl, drift.window)),
        "kl_low": low,
        "kl_high": high,
        **dict(zip(QUANTILES, quantiles.tolist(), strict=True)),
        **with_error("top1", window_mean(drift.agrees, drift.window)),
        **with_error("top5", window_mean(drift.agrees5, drift.window)),
    }


def of_itself(drift: TokenDrift) -> TokenDrift:
    """What the reference is to itself: nothing apart."""
    none, all_ = torch.zeros_like(drift.kl), torch.ones_like(drift.agrees)
    return TokenDrift(drift.places, drift.reference_nll, drift.reference_nll, none, all_, all_)


def with_error(name: str, estimate: Estimate) -> Row:
    return {name: estimate.value, f"{name}_se": estimate.se}
