"""Drift: the distance of a candidate's next-token distributions from the reference's.

    KL(reference ‖ candidate) = Σ p_reference (log p_reference - log p_candidate), in nats, one number per token

The other figures are top-1 agreement, top-5 agreement and the ratio of perplexities. Both models are compared on the
same tokens, so the standard errors are those of paired observations: much smaller than the error of either perplexity.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from calibration.windows import Windows
from compress.core.perplexity import exponential, next_token_nll, window_mean
from compress.core.rows import DriftPart
from compress.evaluate.drift.hidden_states import HiddenStates, Report, check_finite, scored_places
from compress.evaluate.drift.interval import mean_interval, perplexity_intervals

CHUNK = 256  # tokens per matrix product of the head; larger is no faster
STRIP_LOGITS = 1_572_864  # logits compared at once: 6 MB per model, which fit in the processor's cache
TOP = 5  # the candidate's most likely tokens that count for top-5 agreement
PREFERRED = 3  # most likely tokens that are shown for each model
WORST = 20
QUANTILES = (0.5, 0.95, 0.99)


@dataclass(frozen=True)
class TokenDrift:
    """The drift at every scored token. All tensors are (count,), except `places` (count, 2).

    The nlls and the KL are in nats. `agrees` is True if both models have the same most likely token. `agrees5` is True
    if the reference's most likely token is in the candidate's top 5. `places` holds the window and position of the
    logits. `worst` describes the tokens with the largest KL.
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
        """The window of every scored token, (count,). Standard errors treat windows as independent samples."""
        return self.places[:, 0]


@dataclass(frozen=True)
class Preferred:
    """The most likely tokens of both models, at the positions with the largest KL. The largest KL comes first.

    Ids and probabilities are (few, PREFERRED). `index` (few,) holds the index of each position in the fields of
    `TokenDrift`.
    """

    index: Tensor
    reference_ids: Tensor
    reference_probabilities: Tensor
    candidate_ids: Tensor
    candidate_probabilities: Tensor


@torch.no_grad()
def token_drift(
    reference: HiddenStates,
    candidate: HiddenStates,
    windows: Windows,
    *,
    vocabulary: int,
    chunk: int = CHUNK,
    report: Report = lambda row: None,
) -> TokenDrift:
    """The drift at every token in the windows' mask, over the token ids below `vocabulary`.

    Logits of only `chunk` tokens are in memory at a time; `chunk` changes speed and memory, never the result. Raises
    QCompressError, with the checkpoint and the first window, if a number is not finite.
    """
    places = scored_places(windows.mask)
    parts, done, name = [], 0, candidate.checkpoint.path.name
    with reference.head(), candidate.head():
        for part in places.split(chunk):
            ours, theirs = (states.logits(part)[:, :vocabulary] for states in (reference, candidate))
            tokens = windows.ids[part[:, 0], part[:, 1] + 1].to(ours.device)
            parts += compare_strips(ours, theirs, tokens)
            done += len(part)
            report({"compares": name, "tokens": f"{done}/{len(places)}"})
        reference_nll, nll, kl, agrees, agrees5 = (torch.cat(column) for column in zip(*parts, strict=True))
        check_finite(reference.checkpoint, reference_nll, places, "nll")
        check_finite(candidate.checkpoint, nll, places, "nll")
        check_finite(candidate.checkpoint, kl, places, "KL")
        index = kl.topk(min(WORST, len(kl))).indices
        preferred = [
            preferred_tokens(states.logits(places[index])[:, :vocabulary]) for states in (reference, candidate)
        ]
    worst = Preferred(index, *preferred[0], *preferred[1])
    return TokenDrift(places, reference_nll, nll, kl, agrees, agrees5, worst)


def compare_strips(reference: Tensor, candidate: Tensor, tokens: Tensor) -> list[tuple[Tensor, ...]]:
    """The results of `compare_chunk` on a few rows at a time, in CPU memory. Overwrites the logits."""
    rows = max(1, STRIP_LOGITS // reference.shape[1])
    strips = zip(reference.split(rows), candidate.split(rows), tokens.split(rows), strict=True)
    return [tuple(column.cpu() for column in compare_chunk(*strip)) for strip in strips]


def compare_chunk(reference: Tensor, candidate: Tensor, tokens: Tensor) -> tuple[Tensor, ...]:
    """The reference's nll, the candidate's nll, the KL, top-1 agreement and top-5 agreement, (count,) each.

    The logits are (count, vocab), and the next `tokens` are (count,). Overwrites the logits. If several tokens share
    the candidate's highest probability, each of them counts as agreement.
    """
    reference, candidate = log_probabilities(reference), log_probabilities(candidate)
    nlls = next_token_nll(reference, tokens), next_token_nll(candidate, tokens)
    top = candidate.gather(1, reference.argmax(-1, keepdim=True))
    best = candidate.topk(min(TOP, candidate.shape[1])).values
    agrees, agrees5 = (top >= best[:, :1])[:, 0], (top >= best[:, -1:])[:, 0]
    kl = torch.linalg.vecdot(reference.exp(), reference.sub_(candidate))
    return *nlls, kl, agrees, agrees5


def log_probabilities(logits: Tensor) -> Tensor:
    """The log-probabilities of (count, vocab) logits, float32. Overwrites the logits.

    `log_softmax` adds a row's terms in order, so small terms are lost next to a large one: an error of 1.6e-5 nats in
    SmolLM2-135M's nll. `logsumexp` adds in pairs; its error is 3e-9 nats.
    """
    return logits.sub_(logits.logsumexp(-1, keepdim=True))


def preferred_tokens(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Ids and probabilities of the most likely tokens, (few, PREFERRED) each, in CPU memory. Logits: (few, vocab)."""
    best = log_probabilities(logits).topk(min(PREFERRED, logits.shape[1]))
    return best.indices.cpu(), best.values.exp().cpu()


def summarize_drift(drift: TokenDrift) -> DriftPart:
    """Mean values over all tokens. For a single window, standard errors and intervals are None."""
    perplexity = exponential(window_mean(drift.nll, drift.window))
    reference = exponential(window_mean(drift.reference_nll, drift.window))
    ratio = exponential(window_mean(drift.nll.double() - drift.reference_nll.double(), drift.window))
    kl, top1, top5 = (window_mean(values, drift.window) for values in (drift.kl, drift.agrees, drift.agrees5))
    quantiles = torch.quantile(drift.kl.double(), torch.tensor(QUANTILES, dtype=torch.float64)).tolist()
    low, high = mean_interval(drift.kl, drift.window)
    return {
        "perplexity": perplexity.value,
        "perplexity_se": perplexity.se,
        "reference_perplexity": reference.value,
        "reference_perplexity_se": reference.se,
        "perplexity_ratio": ratio.value,
        "perplexity_ratio_se": ratio.se,
        **perplexity_intervals(drift.reference_nll, drift.nll, drift.window),
        "kl": kl.value,
        "kl_se": kl.se,
        "kl_low": low,
        "kl_high": high,
        "kl_median": quantiles[0],
        "kl_p95": quantiles[1],
        "kl_p99": quantiles[2],
        "top1": top1.value,
        "top1_se": top1.se,
        "top5": top5.value,
        "top5_se": top5.se,
    }


def no_drift(drift: TokenDrift) -> TokenDrift:
    """The reference's drift from itself: a KL of 0 and full agreement."""
    zero, one = torch.zeros_like(drift.kl), torch.ones_like(drift.agrees)
    return TokenDrift(drift.places, drift.reference_nll, drift.reference_nll, zero, one, one)
