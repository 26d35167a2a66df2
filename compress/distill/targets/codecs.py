"""Codecs store a teacher's targets for a token in few bytes. A new codec is one class here, its settings
in `codec_settings.py`, and one row in CODECS and in SETTINGS.

    hidden   The final hidden state. Exact for every temperature and divergence. Decoding needs the teacher's head.
    hybrid   The top_k likeliest tokens with probabilities, and random draws from the others. Unbiased, for one
             temperature.
    topk     The top_k likeliest tokens only. Biased: the loss is not smallest at the teacher. For comparison.

hybrid gives each of its `draws` draws the weight r / draws, where r is the total probability of the tokens outside the
top_k. A token's expected weight therefore equals its probability. Sampling is systematic: one uniform number per
position, then equal steps through the cumulative tail (Madow 1949, https://doi.org/10.1214/aoms/1177729988). "Sparse
Logit Sampling", ACL 2025, compares such draws with top-k.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from compress.checkpoint.finite import cast_finite
from compress.core.device import move
from compress.core.dtypes import Dtype
from compress.core.pack import pack_ids, unpack_ids
from compress.distill.targets.codec_settings import HiddenSettings, HybridSettings, TopKSettings, check_codec
from compress.losses import LogitSource, Sparse, Targets
from compress.losses.buffers import CHUNK_LOGITS
from compress.losses.softmax import softmax_into

Parts = dict[str, Tensor]


class Codec(Protocol):
    """A codec of teacher targets.

    `biased`: targets averaged over many caches do not equal the teacher's probabilities. `sparse`: targets are valid
    for one temperature and one vocabulary.
    """

    biased: bool
    sparse: bool

    def bytes_per_token(self, width: int) -> int:
        """The bytes of one encoded token. `width` is the size of a hidden state."""
        ...

    def encode(self, side: LogitSource, uniform: Tensor) -> Parts:
        """Encode hidden states (tokens, width); returns tensors with one row per token.

        `uniform` holds one random number per token, (tokens,).
        """
        ...

    def decode(self, parts: Parts, side: LogitSource) -> Targets:
        """Decode rows of any leading shape into targets for the loss. Head and device come from `side`."""
        ...


@dataclass(frozen=True)
class Hidden(HiddenSettings):
    """Stores the hidden state after the final norm, in `dtype`."""

    def encode(self, side: LogitSource, uniform: Tensor) -> Parts:
        return {"hidden": cast_finite("hidden states", side.hidden, Dtype(self.dtype).torch).cpu()}

    def decode(self, parts: Parts, side: LogitSource) -> Targets:
        return side._replace(hidden=move(parts["hidden"], side.weight.device).to(side.weight.dtype))


@dataclass(frozen=True)
class Hybrid(HybridSettings):
    """Stores token ids (3 bytes each) of the top_k and the draws, float16 log p of top_k and tail, and the entropy."""

    def encode(self, side: LogitSource, uniform: Tensor) -> Parts:
        chunks = probability_chunks(side, self.vocab, self.temperature)
        return concatenate([self._encode(p, uniform[rows].to(p.device)) for rows, p in chunks])

    def _encode(self, p: Tensor, uniform: Tensor) -> Parts:
        entropy = torch.special.entr(p).sum(-1)
        best, ids = p.topk(self.top_k, -1)
        tail = p.scatter_(-1, ids, 0.0).cumsum(-1, dtype=torch.float64)
        mass = tail[:, -1:].clone()
        steps = torch.arange(self.draws, dtype=torch.float64, device=p.device) + uniform[:, None]
        drawn = torch.searchsorted(tail, steps / self.draws * mass, right=True).clamp_(max=self.vocab - 1)
        logs = torch.cat([best, mass.to(best.dtype)], -1).log().half()
        return {"ids": pack_ids(torch.cat([ids, drawn], -1)), "log_p": logs.cpu(), "entropy": entropy.float().cpu()}

    def decode(self, parts: Parts, side: LogitSource) -> Targets:
        p = parts["log_p"].float().exp()
        draws = (p[..., -1:] / self.draws).expand(*p.shape[:-1], self.draws)
        weights = torch.cat([p[..., :-1], draws], -1)
        total = weights.sum(-1, keepdim=True)  # not exactly 1: float16 rounded the logs
        weights = weights / total.clamp(min=torch.finfo(p.dtype).tiny)
        return to_device(Sparse(unpack_ids(parts["ids"]), weights, parts["entropy"], self.vocab), side)


@dataclass(frozen=True)
class TopK(TopKSettings):
    """Stores token ids (3 bytes each) and float16 log p of the top_k. `renormalise` scales the weights to sum to 1."""

    def encode(self, side: LogitSource, uniform: Tensor) -> Parts:
        top = (p.topk(self.top_k, -1) for _, p in probability_chunks(side, self.vocab, self.temperature))
        return concatenate([{"ids": pack_ids(ids), "log_p": p.log().half().cpu()} for p, ids in top])

    def decode(self, parts: Parts, side: LogitSource) -> Targets:
        p = parts["log_p"].float().exp()
        weights = p / p.sum(-1, keepdim=True).clamp(min=torch.finfo(p.dtype).tiny) if self.renormalise else p
        entropy = torch.special.entr(weights).sum(-1)
        return to_device(Sparse(unpack_ids(parts["ids"]), weights, entropy, self.vocab), side)


CODECS: dict[str, type[Hidden] | type[Hybrid] | type[TopK]] = {"hidden": Hidden, "hybrid": Hybrid, "topk": TopK}


def make_codec(settings: dict[str, Any]) -> Codec:
    """The codec for a manifest's settings, which include its "name". Raises ValueError for a bad `top_k` or `draws`."""
    check_codec(settings)
    return CODECS[settings["name"]](**{key: value for key, value in settings.items() if key != "name"})


def probability_chunks(side: LogitSource, vocab: int, temperature: float) -> Iterator[tuple[slice, Tensor]]:
    """Yields pairs: a slice of rows, and the probabilities of these rows, (rows, vocab) float32.

    All pairs share one buffer of CHUNK_LOGITS values. Use each pair before you request the next one.
    """
    hidden, weight, count = side.hidden.float(), side.weight[:vocab].float(), max(1, CHUNK_LOGITS // vocab)
    logits, p = (hidden.new_empty(min(count, len(hidden)), vocab) for _ in range(2))
    for start in range(0, max(1, len(hidden)), count):
        rows = slice(start, start + count)
        size = len(hidden[rows])
        side.head.logits_into(logits[:size], hidden[rows], weight)
        softmax_into(p[:size], logits[:size], temperature)
        yield rows, p[:size]


def concatenate(parts: list[Parts]) -> Parts:
    """Join the tensors that have the same name, along their rows. Returns {} if `parts` is empty."""
    return {name: torch.cat([part[name] for part in parts]) for name in (parts[0] if parts else {})}


def to_device(sparse: Sparse, side: LogitSource) -> Sparse:
    """The targets, moved to the device of `side`."""
    ids, weights, entropy = (move(tensor, side.weight.device) for tensor in sparse[:3])
    return Sparse(ids, weights, entropy, sparse.vocab)
