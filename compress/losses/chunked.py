"""The distillation loss, computed from hidden states chunk by chunk, with its gradient in the forward pass.

    L = α · T² · D(p_teacher, p_student) + (1 − α) · CE,     p = softmax(logits / T),  CE at T = 1

Hinton et al. 2015, https://arxiv.org/abs/1503.02531, section 2: the factor T² keeps the size of the gradient. D is a
row of `divergence`. Only `chunk` rows of each model's logits exist at a time, in float32. Their gradient is passed on
to the hidden states and the head before the next rows are computed. `chunk` changes memory and speed, never the result.
`token_mean` is the only reduction.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from compress.losses.buffers import CHUNK_LOGITS, GPU_CHUNK_LOGITS, LOSS_BUFFERS
from compress.losses.divergence import DIVERGENCES, Divergence
from compress.losses.softmax import cross_entropy_into
from compress.losses.targets import Head, LogitSource, StudentChunk, Targets


class Loss(NamedTuple):
    """The loss and its two parts. `loss` is the scalar to differentiate.

    `kl` is the divergence times T², `ce` the cross-entropy. Both are in nats, one value per token, 0 where masked.
    """

    loss: Tensor
    kl: Tensor
    ce: Tensor


@dataclass(frozen=True)
class Terms:
    """The settings of the loss. The sum over tokens is divided by `total`.

    `hidden` and `weight` are True if the gradient of the hidden states or of the head weight is needed.
    """

    alpha: float
    temperature: float
    total: float
    chunk: int
    divergence: Divergence
    hidden: bool
    weight: bool


def token_mean(per_token: Tensor, mask: Tensor, total: float | None = None) -> Tensor:
    """The sum over unmasked tokens divided by `total`: the number of tokens in the whole step, not in this micro-batch.

    Without `total`, the mean over the unmasked tokens.
    """
    count = float(mask.sum()) if total is None else total
    return (per_token * mask).sum() / max(count, 1.0)


def next_tokens(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The labels and mask (batch, seq - 1) for ids and mask (batch, seq). A position's label is the token after it."""
    return ids[:, 1:], mask[:, 1:]


def distill_loss(
    student: LogitSource,
    teacher: Targets,
    labels: Tensor,
    mask: Tensor,
    *,
    alpha: float = 0.7,
    temperature: float = 1.0,
    divergence: str = "kl",
    beta: float = 0.5,
    total: float | None = None,
    chunk: int | None = None,
    vocab: int | None = None,
    kept: Tensor | None = None,
) -> Loss:
    """The loss of the unmasked tokens. Labels, mask, hidden states and targets have the same leading shape.

    `kept` are the indices of the unmasked tokens in the flat mask; a GPU would have to wait for their number. Before
    the softmax, both vocabularies are cut to the smaller one, and to `vocab`. Gradients reach the student's hidden
    states and head weight. `chunk` is a number of rows; by default it comes from `chunk_rows`. `beta`
    is the teacher's weight in the mixture of jsd. `total` is the divisor of `token_mean`.
    Raises ValueError if a label is outside the vocabulary (on a GPU, CUDA itself refuses it), or if sparse targets have
    another vocabulary or are used with another divergence than kl.
    """
    size = min(student.vocab, teacher.vocab, vocab or student.vocab)
    kept = unmasked(mask) if kept is None else kept
    kept_labels = labels.flatten()[kept]
    if len(kept_labels) and not labels.is_cuda and int(kept_labels.max()) >= size:
        raise ValueError(f"losses: label {int(kept_labels.max())} is outside the common vocabulary of {size} tokens")
    count, rows = len(kept_labels) if total is None else total, chunk or chunk_rows(size, student.hidden.device)
    needs_gradient = [torch.is_grad_enabled() and tensor.requires_grad for tensor in (student.hidden, student.weight)]
    terms = Terms(alpha, temperature, float(count), rows, DIVERGENCES[divergence](beta), *needs_gradient)
    work = torch.promote_types(student.hidden.dtype, torch.float32)
    loss, kl, ce = ChunkedLoss.apply(
        student.hidden.flatten(0, -2)[kept],
        student.weight if len(student.weight) == size else student.weight[:size],
        teacher.only(kept, size, work),
        kept_labels,
        student.head,
        terms,
    )
    return Loss(loss, fill_masked(kl, kept, mask), fill_masked(ce, kept, mask))


def unmasked(mask: Tensor) -> Tensor:
    """The indices of the unmasked tokens in the flat `mask`."""
    return mask.flatten().nonzero()[:, 0]


def chunk_rows(vocab: int, device: torch.device) -> int:
    """The rows of a chunk. A GPU gets longer chunks if a quarter of its free memory holds the buffers."""
    values = CHUNK_LOGITS
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        values = min(GPU_CHUNK_LOGITS, max(CHUNK_LOGITS, free // (4 * 4 * LOSS_BUFFERS)))
    return max(1, values // vocab)


@contextmanager
def fast_products(device: torch.device, on: bool) -> Iterator[None]:
    """Context in which a GPU rounds the factors of float32 products to TF32, as autocast rounds them to bfloat16."""
    if device.type != "cuda" or not on:
        yield
        return
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def fill_masked(values: Tensor, kept: Tensor, mask: Tensor) -> Tensor:
    """Spread one value per unmasked token, with the flat indices `kept`, over the shape of `mask`. Others get 0."""
    full = torch.zeros(mask.numel(), dtype=values.dtype, device=values.device)
    full[kept] = values
    return full.view(mask.shape)


class ChunkedLoss(Function):
    """The loss as an autograd function. It returns the scalar loss, kl (tokens,) and ce (tokens,).

    Its inputs are the student's hidden states (tokens, width) and head weight, and the teacher's targets.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        teacher: Targets,
        labels: Tensor,
        head: Head,
        terms: Terms,
    ) -> tuple[Tensor, Tensor, Tensor]:
        work = torch.promote_types(hidden.dtype, torch.float32)
        trains = terms.hidden or terms.weight
        with torch.autocast(hidden.device.type, enabled=False), fast_products(hidden.device, trains):
            student = LogitSource(hidden.to(work), weight.to(work), head)
            kl, ce, d_hidden, d_weight = run_chunks(student, teacher, labels, terms)
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
        return *gradients, None, None, None, None


def run_chunks(
    side: LogitSource, teacher: Targets, labels: Tensor, terms: Terms
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute kl and ce (tokens,), and the gradients of hidden states and head weight.

    A gradient that `terms` does not request is empty.
    """
    hidden, weight, head = side
    tokens, temperature = len(hidden), terms.temperature
    kl, ce = hidden.new_empty(tokens), hidden.new_empty(tokens)
    d_hidden = torch.zeros_like(hidden if terms.hidden else hidden[:0])
    d_weight = torch.zeros_like(weight if terms.weight else weight[:0])
    buffers = [hidden.new_empty(min(terms.chunk, tokens), len(weight)) for _ in range(4)]
    for start in range(0, tokens, terms.chunk):
        rows = slice(start, start + terms.chunk)
        logits, gradient, *scratch = (buffer[: len(labels[rows])] for buffer in buffers)
        head.logits_into(logits, hidden[rows], weight)
        chunk = StudentChunk(rows, logits, gradient, (scratch[0], scratch[1]), temperature, terms.divergence)
        kl[rows] = temperature**2 * teacher.compare(chunk)
        p_student = scratch[1]
        ce[rows] = cross_entropy_into(logits, labels[rows], p_student)
        if not (terms.hidden or terms.weight):
            continue
        p_student[torch.arange(len(p_student), device=labels.device), labels[rows]] -= 1
        gradient.mul_(terms.alpha * temperature).add_(p_student, alpha=1 - terms.alpha)
        gradient.mul_(head.scale / max(terms.total, 1.0))
        if head.softcap is not None:
            gradient.addcmul_(gradient, logits.div_(head.softcap).square_(), value=-1)
        if terms.hidden:
            torch.mm(gradient, weight, out=d_hidden[rows])
        if terms.weight:
            d_weight.addmm_(gradient.T, hidden[rows])
    return kl, ce, d_hidden, d_weight


@torch.no_grad()
def cross_entropy(side: LogitSource, labels: Tensor, mask: Tensor, *, vocab: int, chunk: int | None = None) -> Tensor:
    """The cross-entropy of one model, float32, in nats for each token of `mask`. It is 0 where masked."""
    kept = unmasked(mask)
    hidden, kept_labels = side.hidden.flatten(0, -2)[kept].float(), labels.flatten()[kept]
    weight, rows = side.weight[:vocab].float(), chunk or chunk_rows(vocab, hidden.device)
    logits, scratch = (hidden.new_empty(min(rows, len(hidden)), len(weight)) for _ in range(2))
    ce = hidden.new_zeros(mask.numel())
    parts = []
    for part, tokens in zip(hidden.split(rows), kept_labels.split(rows), strict=True):
        side.head.logits_into(logits[: len(part)], part, weight)
        parts.append(cross_entropy_into(logits[: len(part)], tokens, scratch[: len(part)]))
    ce[kept] = torch.cat(parts)
    return ce.view(mask.shape)
