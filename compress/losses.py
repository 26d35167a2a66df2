"""The distillation loss, made from hidden states chunk by chunk, its gradient in the forward pass.

    L = α · T² · KL(p_teacher ‖ p_student) + (1 − α) · CE,     p = softmax(logits / T),  CE at T = 1

Hinton et al. 2015, https://arxiv.org/abs/1503.02531, section 2: T² keeps the size of the gradient. Only `chunk` rows
of either model's logits exist at a time, in float32; their gradient goes at once into that of the hidden states and
of the head. `chunk` changes memory and speed, never the result. `token_mean` is the only reduction.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

CHUNK_LOGITS = 2**24  # numbers in one buffer of logits, 64 MiB; there are four


@dataclass(frozen=True)
class Head:
    """How hidden states h become logits: z = scale · h Wᵀ, then softcap · tanh(z / softcap) where there is one."""

    scale: float = 1.0
    softcap: float | None = None


class Side(NamedTuple):
    """One model's part of the loss: hidden (…, width) after the final norm, weight (vocab, width) of its head."""

    hidden: Tensor
    weight: Tensor
    head: Head = Head()


class Loss(NamedTuple):
    """loss: the scalar to differentiate; kl (times T²) and ce: per token in nats, 0 where masked, without gradient."""

    loss: Tensor
    kl: Tensor
    ce: Tensor


@dataclass(frozen=True)
class Terms:
    """The numbers of the loss, `total` divides the sum over tokens; and which gradients somebody will ask for."""

    alpha: float
    temperature: float
    total: float
    chunk: int
    hidden: bool
    weight: bool


def find_head(config: dict[str, Any]) -> Head:
    """The head of a config.json's model. Granite divides its logits, Cohere multiplies them, Gemma 2 caps them."""
    scale = float(config.get("logit_scale") or 1.0) / float(config.get("logits_scaling") or 1.0)
    return Head(scale, config.get("final_logit_softcapping"))


def token_mean(per_token: Tensor, mask: Tensor, total: float | None = None) -> Tensor:
    """Mean over unmasked tokens. `total` counts the whole accumulation window, not this micro-batch."""
    count = float(mask.sum()) if total is None else total
    return (per_token * mask).sum() / max(count, 1.0)


def next_tokens(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """(batch, seq) ids and mask -> labels and mask (batch, seq - 1): what each position but the last must predict."""
    return ids[:, 1:], mask[:, 1:]


def distill_loss(
    student: Side,
    teacher: Side,
    labels: Tensor,
    mask: Tensor,
    *,
    alpha: float = 0.7,
    temperature: float = 1.0,
    total: float | None = None,
    chunk: int | None = None,
    vocab: int | None = None,
) -> Loss:
    """The loss of the tokens where `mask` is True; labels, mask and both hidden states share their leading shape.

    Vocabularies of different size are cut to the smaller, and to `vocab` if it is smaller still, before the softmax.
    Gradients reach the student's hidden states and head weight. `chunk` rows of logits exist at a time (None: about
    CHUNK_LOGITS numbers). ValueError when a label lies outside the vocabulary.
    """
    size = min(len(student.weight), len(teacher.weight), vocab or len(student.weight))
    kept = mask.flatten()
    wanted = labels.flatten()[kept]
    if len(wanted) and int(wanted.max()) >= size:
        raise ValueError(f"losses: label {int(wanted.max())} is outside the common vocabulary of {size} tokens")
    count, rows = len(wanted) if total is None else total, chunk or max(1, CHUNK_LOGITS // size)
    wanted_gradients = [torch.is_grad_enabled() and tensor.requires_grad for tensor in (student.hidden, student.weight)]
    terms = Terms(alpha, temperature, float(count), rows, *wanted_gradients)
    loss, kl, ce = ChunkedLoss.apply(
        student.hidden.flatten(0, -2)[kept],
        student.weight if len(student.weight) == size else student.weight[:size],
        teacher.hidden.detach().flatten(0, -2)[kept],
        teacher.weight.detach()[:size],
        wanted,
        (student.head, teacher.head),
        terms,
    )
    per_token = [torch.zeros(mask.numel(), dtype=value.dtype, device=value.device) for value in (kl, ce)]
    for full, value in zip(per_token, (kl, ce), strict=True):
        full[kept] = value
    return Loss(loss, per_token[0].view(mask.shape), per_token[1].view(mask.shape))


class ChunkedLoss(Function):
    """(tokens, width) states of both models and both heads -> scalar loss, kl (tokens,), ce (tokens,)."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        teacher_hidden: Tensor,
        teacher_weight: Tensor,
        labels: Tensor,
        heads: tuple[Head, Head],
        terms: Terms,
    ) -> tuple[Tensor, Tensor, Tensor]:
        work = torch.promote_types(hidden.dtype, torch.float32)
        with torch.autocast(hidden.device.type, enabled=False):
            states = (hidden.to(work), weight.to(work), teacher_hidden.to(work), teacher_weight.to(work))
            kl, ce, d_hidden, d_weight = run_chunks(*states, labels, heads, terms)
        ctx.save_for_backward(d_hidden.to(hidden.dtype), d_weight.to(weight.dtype))
        ctx.terms = terms
        ctx.mark_non_differentiable(kl, ce)
        per_token = terms.alpha * kl + (1 - terms.alpha) * ce
        return token_mean(per_token, torch.ones_like(kl), terms.total), kl, ce

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_weight = ctx.saved_tensors
        gradients = (d_hidden * d_loss if ctx.terms.hidden else None, d_weight * d_loss if ctx.terms.weight else None)
        return *gradients, None, None, None, None, None


def run_chunks(
    hidden: Tensor,
    weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    labels: Tensor,
    heads: tuple[Head, Head],
    terms: Terms,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """kl and ce (tokens,), and the gradients of the loss for hidden and weight, empty where nobody asks for one."""
    tokens, vocab = len(hidden), len(weight)
    kl, ce = hidden.new_empty(tokens), hidden.new_empty(tokens)
    d_hidden = torch.zeros_like(hidden if terms.hidden else hidden[:0])
    d_weight = torch.zeros_like(weight if terms.weight else weight[:0])
    buffers = [hidden.new_empty(min(terms.chunk, tokens), vocab) for _ in range(4)]
    for start in range(0, tokens, terms.chunk):
        rows = slice(start, start + terms.chunk)
        student, teacher, p_student, p_teacher = (buffer[: len(labels[rows])] for buffer in buffers)
        logits_into(student, hidden[rows], weight, heads[0])
        logits_into(teacher, teacher_hidden[rows], teacher_weight, heads[1])
        kl[rows] = kl_into(student, teacher, p_student, p_teacher, terms.temperature)
        gradient = p_student.sub_(p_teacher).mul_(terms.alpha * terms.temperature)
        ce[rows] = cross_entropy_into(student, labels[rows], p_teacher)
        if not (terms.hidden or terms.weight):
            continue
        p_teacher[torch.arange(len(p_teacher), device=labels.device), labels[rows]] -= 1
        gradient.add_(p_teacher, alpha=1 - terms.alpha).mul_(heads[0].scale / max(terms.total, 1.0))
        if heads[0].softcap is not None:
            gradient.addcmul_(gradient, student.div_(heads[0].softcap).square_(), value=-1)
        if terms.hidden:
            torch.mm(gradient, weight, out=d_hidden[rows])
        if terms.weight:
            d_weight.addmm_(gradient.T, hidden[rows])
    return kl, ce, d_hidden, d_weight


def logits_into(out: Tensor, hidden: Tensor, weight: Tensor, head: Head) -> None:
    """The logits of a chunk, written to `out` (rows, vocab)."""
    torch.mm(hidden if head.scale == 1 else hidden * head.scale, weight.T, out=out)
    if head.softcap is not None:
        out.div_(head.softcap).tanh_().mul_(head.softcap)


def softmax_into(out: Tensor, logits: Tensor, temperature: float) -> Tensor:
    """softmax(logits / temperature) written to `out`; returns the log-sum-exp (rows,) of logits / temperature."""
    largest = logits.amax(-1, keepdim=True)
    torch.sub(logits, largest, out=out).div_(temperature).exp_()
    total = out.sum(-1, keepdim=True)
    out.div_(total)
    return (largest / temperature + total.log()).squeeze(-1)


def kl_into(student: Tensor, teacher: Tensor, p_student: Tensor, p_teacher: Tensor, temperature: float) -> Tensor:
    """T² · KL(teacher ‖ student) (rows,); fills both probabilities at T. `teacher`'s logits are used up.

    KL = Σ p_t (z_t − z_s) / T − lse_t + lse_s: exactly 0 for equal logits.
    """
    lse_teacher = softmax_into(p_teacher, teacher, temperature)
    lse_student = softmax_into(p_student, student, temperature)
    gap = torch.linalg.vecdot(p_teacher, teacher.sub_(student)) / temperature
    return temperature**2 * (gap - lse_teacher + lse_student)


def cross_entropy_into(logits: Tensor, labels: Tensor, probabilities: Tensor) -> Tensor:
    """−log softmax(logits)[label] (rows,); fills `probabilities` with the softmax."""
    lse = softmax_into(probabilities, logits, 1.0)
    return lse - logits.gather(-1, labels[:, None]).squeeze(-1)


@torch.no_grad()
def cross_entropy(side: Side, labels: Tensor, mask: Tensor, *, vocab: int, chunk: int | None = None) -> Tensor:
    """One model's ce per token in nats, 0 where masked, shape of `mask`; float32 inside, chunk by chunk."""
    kept = mask.flatten()
    hidden, wanted = side.hidden.flatten(0, -2)[kept].float(), labels.flatten()[kept]
    weight, rows = side.weight[:vocab].float(), chunk or max(1, CHUNK_LOGITS // vocab)
    logits, scratch = (hidden.new_empty(min(rows, len(hidden)), len(weight)) for _ in range(2))
    ce = hidden.new_zeros(mask.numel())
    parts = []
    for part, tokens in zip(hidden.split(rows), wanted.split(rows), strict=True):
        logits_into(logits[: len(part)], part, weight, side.head)
        parts.append(cross_entropy_into(logits[: len(part)], tokens, scratch[: len(part)]))
    ce[kept] = torch.cat(parts)
    return ce.view(mask.shape)
