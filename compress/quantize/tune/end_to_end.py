"""Tuning: train scales, norms and biases to match the 16-bit model's outputs. Codes and zeros stay fixed.

    minimise  mean KL(p_teacher ‖ p_student) over calibration tokens,   parameter = stored value · (1 + m)

Adam trains the multipliers m, after `tune_blocks` has trained each block alone. EfficientQAT's second phase (Chen et
al. 2024, https://arxiv.org/abs/2407.11062) and mlx-lm's DWQ are similar. Both models are read block by block. Memory
holds one block, the inputs of every block for one batch of windows, and the multipliers with Adam's two means.
`tune_blocks` also needs the states of all windows. Before each use, a parameter is rounded as it will be stored, so the
KL is measured on exactly the model that will be written. The result is the step with the lowest KL on held-out windows.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from compress.core.errors import BadValueError
from compress.core.report import Report, silent
from compress.core.schedule import learning_rate
from compress.losses import LogitSource, distill_loss, find_head
from compress.model.blocks import BlockModel
from compress.model.malloc import release_memory
from compress.model.precision import matmul_in
from compress.quantize.tune.blockwise import tune_blocks
from compress.quantize.tune.model import Adam, TunedWeights, TuneSettings, backward, batches


@dataclass(frozen=True)
class TuneResult:
    """The best multipliers, and the KLs on held-out windows in nats.

    Multipliers of scales are stored by module path, all others by parameter name. `kl_before` is the KL without
    training, `kl_blocks` the KL after training each block alone, and `kl` the lowest KL. `step` is the end-to-end step
    that reached `kl`, or 0 if no step lowered the KL.
    """

    multipliers: dict[str, Tensor]
    kl_before: float
    kl_blocks: float
    kl: float
    step: int = 0


@torch.no_grad()
def tune_model(
    teacher: BlockModel,
    student_model: BlockModel,
    student: TunedWeights,
    ids: Tensor,
    settings: TuneSettings,
    report: Report = silent,
) -> TuneResult:
    """Train the multipliers of `student`. Returns those with the lowest KL on the last `held_out` windows of `ids`.

    `ids` are (n, seq). `student_model` reads its weights from `student`. If training never lowers the KL, all
    multipliers are 0. Raises ValueError if there are too few windows, or the KL is not finite.
    """
    held_out, untrained = settings.held_out, student.snapshot()
    if not 0 < held_out < len(ids):
        raise BadValueError(f"tuning: {len(ids)} windows are too few, because {held_out} are held out; raise --samples")
    with teacher.embedding_and_norm(head=True), student_model.embedding_and_norm(head=True):
        targets = tune_blocks(teacher, student_model, student, ids, settings, report)
        measure = partial(mean_kl, teacher, student_model, ids[-held_out:], targets[-held_out:], settings.batch)
        kl_blocks, after_blocks = measure(), student.snapshot()
        student.restore(untrained)
        kl_before = measure() if settings.block_epochs else kl_blocks
        if kl_blocks < kl_before:
            student.restore(after_blocks)
        report({"kl_before": kl_before, "kl_blocks": kl_blocks})
        best = TuneResult(student.snapshot(), kl_before, kl_blocks, min(kl_before, kl_blocks))
        trainer = ScaleTrainer(teacher, student_model, student, settings.matmul_dtype)
        return train(trainer, best, ids[:-held_out], targets[:-held_out], measure, settings, report)


def train(
    trainer: "ScaleTrainer",
    best: TuneResult,
    ids: Tensor,
    targets: Tensor,
    measure: Callable[[], float],
    settings: TuneSettings,
    report: Report,
) -> TuneResult:
    """Train end to end. Returns the result of the step with the lowest KL, or `best` if no step has a lower KL.

    `measure` returns the KL. It runs twice per epoch.
    """
    steps = settings.epochs * math.ceil(len(ids) / settings.batch)
    interval = max(1, steps // max(1, 2 * settings.epochs))
    for step, rows in enumerate(batches(len(ids), settings, settings.epochs), 1):
        started = time.perf_counter()
        loss = trainer.step(ids[rows], targets[rows], learning_rate(step, steps, settings.learning_rate))
        row = {"tune_step": f"{step}/{steps}", "kl": loss, "seconds": round(time.perf_counter() - started, 1)}
        if step == steps or step % interval == 0:
            row["eval_kl"] = kl = measure()
            if kl < best.kl:
                best = replace(best, multipliers=trainer.student.snapshot(), kl=kl, step=step)
        report(row)
    return best


def final_states(model: BlockModel, ids: Tensor, batch: int) -> Tensor:
    """The states (n, seq, hidden) after the last block. The model is read once, block by block."""
    with model.embedding_and_norm():
        states = [model.embed(part) for part in ids.split(batch)]
    for index, block in model.in_order():
        states = [model.runner(block, index)(part) for part in states]
    return torch.cat(states)


def block_states(model: BlockModel, ids: Tensor) -> list[Tensor]:
    """The input of every block and the output of the last one, each (batch, seq, hidden).

    The model needs an open `embedding_and_norm`.
    """
    states = [model.embed(ids)]
    for index, block in model.in_order():
        states.append(model.runner(block, index)(states[-1]))
        release_memory()
    return states


def kl_of_states(teacher: BlockModel, model: BlockModel, hidden: Tensor, targets: Tensor, ids: Tensor) -> Tensor:
    """Mean KL(teacher ‖ model) in nats over all positions, a scalar.

    It is computed from both models' states after their last block, (batch, seq, hidden): `hidden` of the model and
    `targets` of the teacher. Both models need an open `embedding_and_norm(head=True)`.
    """
    ids = ids.to(hidden.device)
    everywhere = torch.ones_like(ids).bool()
    return distill_loss(logit_source(model, hidden), logit_source(teacher, targets), ids, everywhere, alpha=1.0).loss


def kl_gradient(
    teacher: BlockModel, model: BlockModel, hidden: Tensor, targets: Tensor, ids: Tensor
) -> tuple[float, Tensor]:
    """`kl_of_states`, and its gradient with respect to `hidden`."""
    with torch.enable_grad():
        hidden = hidden.detach().requires_grad_()
        kl = kl_of_states(teacher, model, hidden, targets, ids)
        kl.backward()
    assert hidden.grad is not None
    return kl.item(), hidden.grad


@torch.no_grad()
def mean_kl(teacher: BlockModel, model: BlockModel, ids: Tensor, targets: Tensor, batch: int) -> float:
    """Mean KL(teacher ‖ model) in nats over all positions of (n, seq) ids. `targets` are the teacher's `final_states`.

    Both models need an open `embedding_and_norm(head=True)`.
    """
    total = 0.0
    for part, part_targets in zip(ids.split(batch), targets.split(batch), strict=True):
        total += kl_of_states(teacher, model, block_states(model, part)[-1], part_targets, part).item() * len(part)
    return total / len(ids)


class ScaleTrainer:
    """Trains the multipliers step by step: forward and backward through all blocks, one block in memory at a time."""

    def __init__(
        self, teacher: BlockModel, model: BlockModel, student: TunedWeights, matmul_dtype: torch.dtype = torch.float32
    ):
        self.teacher, self.model, self.student, self.matmul_dtype = teacher, model, student, matmul_dtype
        self.adam = Adam(student.multipliers.values())

    def step(self, ids: Tensor, targets: Tensor, rate: float) -> float:
        """Update all multipliers once. Returns the KL before the update. Raises ValueError if that KL is not finite."""
        with matmul_in(self.matmul_dtype, self.model.device.type):
            states = block_states(self.model, ids)
        loss, gradient = kl_gradient(self.teacher, self.model, states.pop(), targets, ids)
        if not math.isfinite(loss):
            raise BadValueError(f"tuning: the KL is {loss} with the learning rate {rate:g}; quantize without --tune")
        for index in reversed(range(len(self.model))):
            with self.model.block(index) as block:
                run, loss_of = self.model.runner(block, index), partial(product, gradient)
                gradient = backward(self.student, block, run, states.pop(), loss_of, self.matmul_dtype)
                release_memory()
        self.adam.step(rate)
        return loss


def product(gradient: Tensor, output: Tensor) -> Tensor:
    """A scalar whose gradient with respect to `output` is `gradient`."""
    return (output * gradient).sum()


def logit_source(model: BlockModel, hidden: Tensor) -> LogitSource:
    """What the loss needs to compute a model's logits from its states (batch, seq, hidden) after the last block.

    The model needs an open `embedding_and_norm(head=True)`.
    """
    head = model.model.get_output_embeddings()
    return LogitSource(model.final_norm(hidden), head.weight, find_head(model.model.config.to_dict()))
