"""What a teacher says of every token: dense, as hidden states and a head, or sparse, as a few weighted token ids.

Both are already shifted: row i is about the token after position i. Both answer the same two questions, so the loop
over chunks does not know which it has.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from compress.losses.divergence import Divergence, forward_kl
from compress.losses.softmax import softmax_into


@dataclass(frozen=True)
class Head:
    """How hidden states h become logits: z = scale · h Wᵀ, then softcap · tanh(z / softcap) where there is one."""

    scale: float = 1.0
    softcap: float | None = None

    def logits_into(self, out: Tensor, hidden: Tensor, weight: Tensor) -> None:
        """The logits of a chunk, written to `out` (rows, vocab)."""
        torch.mm(hidden if self.scale == 1 else hidden * self.scale, weight.T, out=out)
        if self.softcap is not None:
            out.div_(self.softcap).tanh_().mul_(self.softcap)


def find_head(config: dict[str, Any]) -> Head:
    """The head of a config.json's model. Granite divides its logits, Cohere multiplies them, Gemma 2 caps them."""
    scale = float(config.get("logit_scale") or 1.0) / float(config.get("logits_scaling") or 1.0)
    return Head(scale, config.get("final_logit_softcapping"))


class Targets(Protocol):
    """What the loss asks of a teacher's part; `vocab` tokens are in its distribution."""

    @property
    def vocab(self) -> int: ...

    def only(self, kept: Tensor, vocab: int, dtype: torch.dtype) -> "Targets":
        """The tokens of the flat bool mask `kept` alone, over the first `vocab` ids, ready for `compare`."""
        ...

    def compare(
        self,
        rows: slice,
        logits: Tensor,
        gradient: Tensor,
        scratch: tuple[Tensor, Tensor],
        temperature: float,
        divergence: Divergence,
    ) -> Tensor:
        """The divergence (rows,) from the student's `logits`; its gradient for logits / T goes to `gradient`."""
        ...


class LogitSource(NamedTuple):
    """One model's part of the loss: hidden (…, width) after the final norm, weight (vocab, width) of its head.

    As a teacher's it is dense: its logits are made chunk by chunk, at any temperature, for any divergence.
    """

    hidden: Tensor
    weight: Tensor
    head: Head = Head()

    @property
    def vocab(self) -> int:
        return len(self.weight)

    def only(self, kept: Tensor, vocab: int, dtype: torch.dtype) -> "LogitSource":
        hidden = self.hidden.detach().flatten(0, -2)[kept]
        return LogitSource(hidden.to(dtype), self.weight.detach()[:vocab].to(dtype), self.head)

    def compare(
        self,
        rows: slice,
        logits: Tensor,
        gradient: Tensor,
        scratch: tuple[Tensor, Tensor],
        temperature: float,
        divergence: Divergence,
    ) -> Tensor:
        teacher, p_teacher = scratch
        self.head.logits_into(teacher, self.hidden[rows], self.weight)
        gap = softmax_into(p_teacher, teacher, temperature) - softmax_into(gradient, logits, temperature)
        return divergence(teacher.sub_(logits).div_(temperature).sub_(gap[:, None]), gradient, p_teacher)


class Sparse(NamedTuple):
    """ids (…, n) int64 and weights (…, n) that stand for the teacher's probabilities, entropy (…,) of those in nats.

    They were taken at one temperature, which must be the loss's, over `vocab` tokens. An id may come twice; what is
    not named weighs 0. KL = Σ w (−log p_s) − entropy: only the student's softmax is whole. Where the weights are a
    sample, value and gradient are unbiased, so one token's value may be below 0.
    """

    ids: Tensor
    weights: Tensor
    entropy: Tensor
    vocab: int

    def only(self, kept: Tensor, vocab: int, dtype: torch.dtype) -> "Sparse":
        if vocab != self.vocab:
            raise ValueError(f"losses: targets over {self.vocab} tokens cannot teach a loss over {vocab}")
        weights = self.weights.flatten(0, -2)[kept].to(dtype)
        return Sparse(self.ids.flatten(0, -2)[kept], weights, self.entropy.flatten()[kept].to(dtype), vocab)

    def compare(
        self,
        rows: slice,
        logits: Tensor,
        gradient: Tensor,
        scratch: tuple[Tensor, Tensor],
        temperature: float,
        divergence: Divergence,
    ) -> Tensor:
        if divergence is not forward_kl:
            raise ValueError("losses: sparse targets know only what the teacher would say; divergence must be kl")
        ids, weights = self.ids[rows], self.weights[rows]
        mass = weights.sum(-1)
        cross = mass * softmax_into(gradient, logits, temperature)
        cross -= torch.linalg.vecdot(weights, logits.gather(-1, ids)) / temperature
        gradient.mul_(mass[:, None]).scatter_add_(-1, ids, -weights)
        return cross - self.entropy[rows]
