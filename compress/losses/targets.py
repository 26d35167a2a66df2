"""A teacher's distributions: dense, as hidden states and a head, or sparse, as a few weighted token ids.

Row i is the distribution of the token after position i. Dense and sparse targets both have the methods of `Targets`, so
one loop over chunks serves both.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from compress.losses.divergence import Divergence, forward_kl
from compress.losses.softmax import softmax_into


@dataclass(frozen=True)
class Head:
    """How hidden states h become logits: z = scale · h Wᵀ, then softcap · tanh(z / softcap) if `softcap` is set."""

    scale: float = 1.0
    softcap: float | None = None

    def logits_into(self, out: Tensor, hidden: Tensor, weight: Tensor) -> None:
        """Write the logits of a chunk to `out` (rows, vocab) float32.

        A GPU multiplies 16-bit states and weights as they are, and sums in float32. So the result is that of float32.
        """
        if hidden.dtype == out.dtype:
            torch.mm(hidden if self.scale == 1 else hidden * self.scale, weight.T, out=out)
        else:
            torch.mm(hidden, weight.T, out.dtype, out=out).mul_(self.scale)
        if self.softcap is not None:
            out.div_(self.softcap).tanh_().mul_(self.softcap)


def find_head(config: dict[str, Any]) -> Head:
    """The head that a config.json describes. Granite divides its logits, Cohere multiplies them, Gemma 2 caps them."""
    scale = float(config.get("logit_scale") or 1.0) / float(config.get("logits_scaling") or 1.0)
    return Head(scale, config.get("final_logit_softcapping"))


class StudentChunk(NamedTuple):
    """A chunk of the student's logits, with the buffers and settings for comparing it with a teacher.

    `rows` are the chunk's rows of the targets. `logits`, `gradient` and both `scratch` buffers are (rows, vocab).
    """

    rows: slice
    logits: Tensor
    gradient: Tensor
    scratch: tuple[Tensor, Tensor]
    temperature: float
    divergence: Divergence


class Targets(Protocol):
    """The teacher's distributions over `vocab` tokens, as the loss uses them."""

    @property
    def vocab(self) -> int: ...

    def only(self, kept: Tensor, vocab: int, dtype: torch.dtype) -> "Targets":
        """The distributions of the tokens with the flat indices `kept`, over the first `vocab` ids, detached.

        Numbers are in `dtype`; a dense teacher on a GPU keeps a 16-bit dtype.
        """
        ...

    def compare(self, chunk: StudentChunk) -> Tensor:
        """The divergence (rows,) between a chunk of the student's logits and its rows of the targets.

        `chunk.gradient` is filled with the gradient with respect to logits / T. `chunk.scratch` is overwritten.
        """
        ...


class LogitSource(NamedTuple):
    """The source of a model's logits: hidden (…, width) after the final norm, and the head's weight (vocab, width).

    As a teacher's targets, it is dense: logits are computed chunk by chunk, for every temperature and divergence.
    """

    hidden: Tensor
    weight: Tensor
    head: Head = Head()

    @property
    def vocab(self) -> int:
        return len(self.weight)

    def only(self, kept: Tensor, vocab: int, dtype: torch.dtype) -> "LogitSource":
        hidden, weight = self.hidden.detach().flatten(0, -2)[kept], self.weight.detach()[:vocab]
        if weight.is_cuda and hidden.dtype == weight.dtype:
            return LogitSource(hidden, weight, self.head)
        return LogitSource(hidden.to(dtype), weight.to(dtype), self.head)

    def compare(self, chunk: StudentChunk) -> Tensor:
        rows, logits, gradient, (teacher, p_teacher), temperature, divergence = chunk
        self.head.logits_into(teacher, self.hidden[rows], self.weight)
        gap = softmax_into(p_teacher, teacher, temperature) - softmax_into(gradient, logits, temperature)
        return divergence(teacher.sub_(logits).div_(temperature).sub_(gap[:, None]), gradient, p_teacher)


class Sparse(NamedTuple):
    """Sparse targets: ids (…, n) int64, weights (…, n) that estimate the teacher's probabilities, and entropy (…,).

    The entropy is that of the teacher's distribution, in nats. The weights are valid for one temperature, which must be
    the temperature of the loss, and for a vocabulary of `vocab` tokens. An id may occur twice. Ids that do not occur
    have weight 0. KL = Σ w (−log p_s) − entropy, so only the student needs a whole softmax. If the weights are a random
    sample, KL and gradient are unbiased, and the KL of a single token may be below 0.
    """

    ids: Tensor
    weights: Tensor
    entropy: Tensor
    vocab: int

    def only(self, kept: Tensor, vocab: int, dtype: torch.dtype) -> "Sparse":
        if vocab != self.vocab:
            raise ValueError(
                f"losses: sparse targets are for {self.vocab} tokens, but the loss uses {vocab}; capture again"
            )
        weights = self.weights.flatten(0, -2)[kept].to(dtype)
        return Sparse(self.ids.flatten(0, -2)[kept], weights, self.entropy.flatten()[kept].to(dtype), vocab)

    def compare(self, chunk: StudentChunk) -> Tensor:
        rows, logits, gradient, _, temperature, divergence = chunk
        if divergence is not forward_kl:
            raise ValueError("losses: sparse targets support only the divergence kl; use --divergence kl")
        ids, weights = self.ids[rows], self.weights[rows]
        mass = weights.sum(-1)
        cross = mass * softmax_into(gradient, logits, temperature)
        cross -= torch.linalg.vecdot(weights, logits.gather(-1, ids)) / temperature
        gradient.mul_(mass[:, None]).scatter_add_(-1, ids, -weights)
        return cross - self.entropy[rows]
