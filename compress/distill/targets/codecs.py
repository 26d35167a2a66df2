"""What a teacher says of a token, in few bytes. A new codec is one class here and one row in CODECS.

    hidden   the final hidden state: exact, at any temperature and for any divergence; needs the teacher's head to read
    hybrid   the top_k likeliest tokens with their probability, and draws from all others: unbiased, at one temperature
    topk     the top_k likeliest tokens alone: biased, the gradient's fixed point is not the teacher; for comparison

hybrid: with r the probability of all but the top_k, each of the `draws` draws stands for r / draws, so the expected
weight of every token is its probability. The draws are systematic: one uniform number per token, equal steps through
the cumulated tail (Madow 1949, https://doi.org/10.1214/aoms/1177729988). Against a mere top-k see "Sparse Logit
Sampling", ACL 2025.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from compress.checkpoint.finite import cast_finite
from compress.core.pack import pack_ids, unpack_ids
from compress.losses import CHUNK_LOGITS, LogitSource, Sparse, Targets
from compress.losses.softmax import softmax_into

Parts = dict[str, Tensor]


class Codec(Protocol):
    """`biased`: the mean of many caches is not the teacher. `sparse`: holds for one temperature and vocabulary only."""

    biased: bool
    sparse: bool

    def bytes_per_token(self, width: int) -> int:
        """What `encode` makes of one hidden state of `width`."""
        ...

    def encode(self, side: LogitSource, uniform: Tensor) -> Parts:
        """The teacher's side (tokens, width), a uniform number (tokens,) for each -> tensors by name, a row a token."""
        ...

    def decode(self, parts: Parts, side: LogitSource) -> Targets:
        """What was encoded as targets, for the loss; `side` lends its head and its device. The rows may be batched."""
        ...


@dataclass(frozen=True)
class Hidden:
    """The state after the final norm, in the teacher's own dtype."""

    dtype: str = "float16"
    biased, sparse = False, False

    def bytes_per_token(self, width: int) -> int:
        return width * self._dtype.itemsize

    @property
    def _dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)  # type: ignore[no-any-return]

    def encode(self, side: LogitSource, uniform: Tensor) -> Parts:
        return {"hidden": cast_finite("hidden states", side.hidden, self._dtype).cpu()}

    def decode(self, parts: Parts, side: LogitSource) -> Targets:
        return side._replace(hidden=parts["hidden"].to(side.weight.device, side.weight.dtype))


@dataclass(frozen=True)
class Hybrid:
    """ids of top_k and of `draws` draws in 3 bytes each; log p of the former and of the rest; the entropy."""

    vocab: int
    temperature: float = 1.0
    top_k: int = 12
    draws: int = 10
    biased, sparse = False, True

    def bytes_per_token(self, width: int) -> int:
        return 3 * (self.top_k + self.draws) + 2 * (self.top_k + 1) + 4

    def encode(self, side: LogitSource, uniform: Tensor) -> Parts:
        chunks = split(side, self.vocab, self.temperature)
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
        weights = weights / weights.sum(-1, keepdim=True).clamp(min=torch.finfo(p.dtype).tiny)  # float16 rounded them
        return to_device(Sparse(unpack_ids(parts["ids"]), weights, parts["entropy"], self.vocab), side)


@dataclass(frozen=True)
class TopK:
    """ids in 3 bytes and log p of the top_k; what is missing to 1 is shared out among them where `renormalise`."""

    vocab: int
    temperature: float = 1.0
    top_k: int = 50
    renormalise: bool = True
    biased, sparse = True, True

    def bytes_per_token(self, width: int) -> int:
        return 5 * self.top_k

    def encode(self, side: LogitSource, uniform: Tensor) -> Parts:
        found = (p.topk(self.top_k, -1) for _, p in split(side, self.vocab, self.temperature))
        return concatenate([{"ids": pack_ids(ids), "log_p": p.log().half().cpu()} for p, ids in found])

    def decode(self, parts: Parts, side: LogitSource) -> Targets:
        p = parts["log_p"].float().exp()
        weights = p / p.sum(-1, keepdim=True).clamp(min=torch.finfo(p.dtype).tiny) if self.renormalise else p
        entropy = torch.special.entr(weights).sum(-1)
        return to_device(Sparse(unpack_ids(parts["ids"]), weights, entropy, self.vocab), side)


CODECS: dict[str, type[Hidden] | type[Hybrid] | type[TopK]] = {"hidden": Hidden, "hybrid": Hybrid, "topk": TopK}


def make_codec(settings: dict[str, Any]) -> Codec:
    """The codec of a manifest's settings, its name under "name". ValueError for numbers that cannot be."""
    options = {key: value for key, value in settings.items() if key != "name"}
    codec = CODECS[settings["name"]](**options)
    kept, vocab = options.get("top_k", 1), options.get("vocab", 2)
    if not 1 <= kept < vocab or options.get("draws", 1) < 1:
        raise ValueError(f"codec {settings}: top_k must be 1 to {vocab - 1}, draws 1 or more")
    return codec


def split(side: LogitSource, vocab: int, temperature: float) -> Iterator[tuple[slice, Tensor]]:
    """Rows, and their probabilities (rows, vocab) in float32, about CHUNK_LOGITS of them at a time, in one buffer."""
    hidden, weight, count = side.hidden.float(), side.weight[:vocab].float(), max(1, CHUNK_LOGITS // vocab)
    logits, p = (hidden.new_empty(min(count, len(hidden)), vocab) for _ in range(2))
    for start in range(0, max(1, len(hidden)), count):
        rows = slice(start, start + count)
        size = len(hidden[rows])
        side.head.logits_into(logits[:size], hidden[rows], weight)
        softmax_into(p[:size], logits[:size], temperature)
        yield rows, p[:size]


def concatenate(parts: list[Parts]) -> Parts:
    """Rows after rows, by name; {} of nothing."""
    return {name: torch.cat([part[name] for part in parts]) for name in (parts[0] if parts else {})}


def to_device(sparse: Sparse, side: LogitSource) -> Sparse:
    ids, weights, entropy = (tensor.to(side.weight.device) for tensor in sparse[:3])
    return Sparse(ids, weights, entropy, sparse.vocab)
