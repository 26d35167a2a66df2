"""Tuning: codes and zeros stay as they are; scales, norms and biases learn to give the 16-bit model's answers back.

    minimise  mean KL(p_teacher ‖ p_student) over calibration tokens,   parameter = stored value · (1 + m)

by Adam over the multipliers m, from where `tune_blocks` has brought them, if asked: EfficientQAT's second phase
(Chen et al. 2024, https://arxiv.org/abs/2407.11062) and mlx-lm's DWQ do the like. Both models are read block by block:
memory holds one block, the inputs of every block for one batch of windows, the multipliers with Adam's two means, and
before that the states of all windows. A parameter is rounded as the disk will hold it before it is used, so what is
judged is what is written; the best on windows that are not trained on is the result.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from compress.core.schedule import learning_rate
from compress.losses import LogitSource, distill_loss, find_head
from compress.model.blocks import BlockModel
from compress.model.malloc import release_memory
from compress.model.precision import matmul_in
from compress.quantize.tune.blockwise import tune_blocks
from compress.quantize.tune.model import Adam, TunedWeights, TuneSettings, backward, batches

Row = dict[str, Any]
Report = Callable[[Row], None]


@dataclass(frozen=True)
class TuneResult:
    """multipliers: by module path for scales, by parameter name for the rest; held-out KL in nats.

    `kl_before`, `kl_blocks` after every block alone, `kl` in the end, to which `step` steps of the whole model led.
    """

    multipliers: dict[str, Tensor]
    kl_before: float
    kl_blocks: float
    kl: float
    step: int


@torch.no_grad()
def tune_model(
    teacher: BlockModel,
    student_model: BlockModel,
    student: TunedWeights,
    ids: Tensor,
    settings: TuneSettings,
    report: Report = lambda row: None,
) -> TuneResult:
    """The multipliers with the lowest KL on the held-out ones of `ids` (n, seq); zeros when nothing was lower.

    `student_model` takes its weights from `student`. ValueError where no window is left to train on or to judge by, or
    a KL is not finite.
    """
    held, untrained = settings.held_out, student.snapshot()
    if not 0 < held < len(ids):
        raise ValueError(f"tuning trains on windows and judges on {held} others: {len(ids)} is too few")
    with teacher.embedding_and_norm(head=True), student_model.embedding_and_norm(head=True):
        answers = tune_blocks(teacher, student_model, student, ids, settings, report)
        judge = partial(mean_kl, teacher, student_model, ids[-held:], answers[-held:], settings.batch)
        kl_blocks, kept, kept_step = judge(), student.snapshot(), 0
        student.restore(untrained)
        before = judge() if settings.block_epochs else kl_blocks
        if kl_blocks >= before:
            kept = untrained
        student.restore(kept)
        best = min(before, kl_blocks)
        report({"kl_before": before, "kl_blocks": kl_blocks})
        trainer = Trainer(teacher, student_model, student, settings.matmul_dtype)
        steps = settings.epochs * math.ceil((len(ids) - held) / settings.batch)
        for step, rows in enumerate(batches(len(ids) - held, settings, settings.epochs), 1):
            started = time.perf_counter()
            loss = trainer.step(ids[rows], answers[rows], learning_rate(step, steps, settings.learning_rate))
            line = {"tune_step": f"{step}/{steps}", "kl": loss, "seconds": round(time.perf_counter() - started, 1)}
            if step == steps or step % max(1, steps // (2 * settings.epochs)) == 0:
                line["eval_kl"] = now = judge()
                if now < best:
                    best, kept, kept_step = now, student.snapshot(), step
            report(line)
    return TuneResult(kept, before, kl_blocks, best, kept_step)


def final_states(model: BlockModel, ids: Tensor, batch: int) -> Tensor:
    """(n, seq, hidden) after the last block: the model read once, block by block."""
    with model.embedding_and_norm():
        states = [model.embed(part) for part in ids.split(batch)]
    for index, block in model.in_order():
        states = [model.runner(block, index)(part) for part in states]
    return torch.cat(states)


def block_states(model: BlockModel, ids: Tensor) -> list[Tensor]:
    """The input of every block, and what the last one puts out; each (batch, seq, hidden). Needs `ends`."""
    states = [model.embed(ids)]
    for index, block in model.in_order():
        states.append(model.runner(block, index)(states[-1]))
        release_memory()
    return states


def kl_now(teacher: BlockModel, model: BlockModel, hidden: Tensor, answers: Tensor, ids: Tensor) -> Tensor:
    """Mean KL(teacher ‖ model) over all positions, a scalar, from both models' states after their last blocks, (batch,
    seq, hidden). Needs `ends(head=True)` of both."""
    ids = ids.to(hidden.device)
    everywhere = torch.ones_like(ids).bool()
    return distill_loss(side(model, hidden), side(teacher, answers), ids, everywhere, alpha=1.0).loss


def kl_gradient(
    teacher: BlockModel, model: BlockModel, hidden: Tensor, answers: Tensor, ids: Tensor
) -> tuple[float, Tensor]:
    """`kl_now`, and its gradient for `hidden`."""
    with torch.enable_grad():
        hidden = hidden.detach().requires_grad_()
        kl = kl_now(teacher, model, hidden, answers, ids)
        kl.backward()
    assert hidden.grad is not None
    return kl.item(), hidden.grad


@torch.no_grad()
def mean_kl(teacher: BlockModel, model: BlockModel, ids: Tensor, answers: Tensor, batch: int) -> float:
    """Mean KL in nats over all positions of (n, seq) ids; `answers` are the teacher's `final_states`.

    Needs `ends(head=True)` of both.
    """
    total = 0.0
    for part, wanted in zip(ids.split(batch), answers.split(batch), strict=True):
        total += kl_now(teacher, model, block_states(model, part)[-1], wanted, part).item() * len(part)
    return total / len(ids)


class Trainer:
    """One step at a time: forward through all blocks, backward through them, each loaded when its turn comes."""

    def __init__(
        self, teacher: BlockModel, model: BlockModel, student: TunedWeights, matmul_dtype: torch.dtype = torch.float32
    ):
        self.teacher, self.model, self.student, self.matmul_dtype = teacher, model, student, matmul_dtype
        self.adam = Adam(student.multipliers.values())

    def step(self, ids: Tensor, answers: Tensor, rate: float) -> float:
        """One update of all multipliers; the KL before it."""
        with matmul_in(self.matmul_dtype):
            states = block_states(self.model, ids)
        loss, gradient = kl_gradient(self.teacher, self.model, states.pop(), answers, ids)
        if not math.isfinite(loss):
            raise ValueError(f"tuning: KL is {loss}; a lower learning rate than {rate:g} is needed")
        for index in reversed(range(len(self.model))):
            with self.model.block(index) as block:
                run, loss_of = self.model.runner(block, index), partial(product, gradient)
                gradient = backward(self.student, block, run, states.pop(), loss_of, self.matmul_dtype)
                release_memory()
        self.adam.step(rate)
        return loss


def product(gradient: Tensor, output: Tensor) -> Tensor:
    """A scalar whose gradient for `output` is `gradient`."""
    return (output * gradient).sum()


def side(model: BlockModel, hidden: Tensor) -> LogitSource:
    """One model's part of the loss, from (batch, seq, hidden) after its last block. Needs `ends(head=True)`."""
    head = model.model.get_output_embeddings()
    return LogitSource(model.final_norm(hidden), head.weight, find_head(model.model.config.to_dict()))
