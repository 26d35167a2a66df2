"""The training loop, on accelerate: AdamW, warm-up and cosine schedule, clipped gradients.

The loop keeps the weights with the lowest evaluation KL. The teacher, or its cache, runs once per micro-batch. The loss
of a step is the mean over the step's unmasked tokens; the number of micro-batches does not change it. Weights are
float32; activations are bfloat16 on GPUs that support it.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn

from calibration.windows import Windows
from compress.checkpoint.finite import cast_finite
from compress.core.device import move
from compress.core.report import Report, Row, silent
from compress.core.schedule import learning_rate
from compress.distill.config import TrainConfig
from compress.distill.model import MicroBatch, Model, micro_batch
from compress.distill.sharding.fsdp import (
    DEEPSPEED,
    FSDP,
    ShardedObjective,
    Zero,
    backward,
    check_launch,
    full_tensor,
    make_accelerator,
    no_sync,
    run_unsharded,
    unshard,
    unsharded_model,
    update,
)
from compress.distill.sharding.parallel import add_up, from_first, share
from compress.distill.text.packing import Batch, as_batch
from compress.distill.training.align import Aligned, Alignment, align_weight
from compress.distill.training.evaluator import Scores, StudentEvaluator
from compress.distill.training.gradient_checkpointing import recomputing
from compress.distill.training.journal import NOWHERE, Progress, StateSaver
from compress.distill.training.lora import adapted, plain_parameters
from compress.distill.training.state import best_weights, finished_state, load_state, take_state
from compress.losses import Loss, Targets, distill_loss, next_tokens, token_mean, unmasked

Rewrite = Callable[[int, Batch], Batch]  # from a step's number and windows to the windows to train on
MAX_NORM = 1.0
BETAS = (0.9, 0.95)


@dataclass
class Trained:
    """The result of a training: loss curve, and the best weights with their step and evaluation KL.

    Weights are in the stored dtype. Step 0 means untrained.
    """

    weights: dict[str, Tensor]
    best_step: int
    best_kl: float
    curve: list[Row] = field(default_factory=list)
    stopped: str | None = None


class AlignedLoss(NamedTuple):
    """A `Loss` with one more part: `align`, the mean distance between hidden states, not yet weighted."""

    loss: Tensor
    kl: Tensor
    ce: Tensor
    align: Tensor


class Teacher(Protocol):
    """A source of targets, either a model or a cache. For ids (batch, seq) the targets are (batch, seq - 1, …).

    `on_host` is True if `side` reads its ids in main memory.
    """

    on_host: bool

    def side(self, ids: Tensor, documents: Tensor | None = None) -> Targets | Aligned: ...


class Objective(nn.Module):
    """The student and the loss as one module. A wrapper for distributed training can then wrap both together."""

    def __init__(self, student: Model, settings: TrainConfig, vocab: int, alignment: Alignment | None = None):
        super().__init__()
        self.student, self.settings, self.vocab, self.alignment = student.model, settings, vocab, alignment
        self.align_weight = settings.align_weight
        self._side, self._states = student.side, student.states

    def groups(self) -> list[dict[str, Any]]:
        """Parameter groups of the optimizer: first the student's trainable weights, then the alignment's projection."""
        groups = [[p for p in self.student.parameters() if p.requires_grad]]
        groups += [] if self.alignment is None else [list(self.alignment.parameters())]
        return [{"params": group} for group in groups]

    def forward(
        self, batch: Batch, teacher: Targets | Aligned, total: float, kept: Tensor | None = None
    ) -> Loss | AlignedLoss:
        """The loss of a micro-batch. `kept` are the indices of its unmasked tokens; None computes them."""
        labels, keep = next_tokens(batch.ids, batch.mask)
        options = {name: getattr(self.settings, name) for name in ("alpha", "temperature", "divergence", "beta")}
        options |= {"total": total, "vocab": self.vocab, "kept": kept}
        if self.alignment is None or not isinstance(teacher, Aligned):
            targets = teacher.targets if isinstance(teacher, Aligned) else teacher
            return distill_loss(self._side(batch.ids, batch.documents), targets, labels, keep, **options)
        side, states = self._states(batch.ids, [block for block, _ in self.alignment.pairs], batch.documents)
        loss = distill_loss(side, teacher.targets, labels, keep, **options)
        align = self.alignment(states, teacher.states, keep, total)
        return AlignedLoss(loss.loss + self.align_weight * align, loss.kl, loss.ce, align.detach())


def train(
    student: Model,
    teacher: Teacher,
    windows: Windows,
    evaluator: StudentEvaluator,
    settings: TrainConfig,
    *,
    kl_before: float,
    dtype: torch.dtype,
    report: Report = silent,
    alignment: Alignment | None = None,
    rewrite: Rewrite | None = None,
    saver: StateSaver = NOWHERE,
) -> Trained:
    """Train `student` in place; returns the best weights in `dtype`, with adapters merged, and the loss curve.

    `kl_before` is the student's evaluation KL before training. A student with adapters trains only these. `alignment`
    is trained too; the teacher must then return `Aligned`. `rewrite` replaces each step's windows. `saver` resumes an
    interrupted run, with the same curve and weights. Training stops at the first loss or gradient that is not finite;
    `stopped` then holds the reason.
    """
    result, saved = Trained(snapshot(student.model, dtype), 0, kl_before), saver.load()
    if saved is not None:
        copy_progress(result, *saved)
        if saved[0].over:
            return result
    optimizer_step = make_optimizer_step(student, settings, evaluator.vocab, alignment, rewrite)
    if saved is not None:
        load_state(optimizer_step.objective, optimizer_step.optimizer, saved[1])
    first = (saved[0].step if saved else 0) + 1
    loop = TrainingLoop(optimizer_step, student, teacher, evaluator, result, dtype, report, saver)
    loop.run(read_batches(windows, settings, first))
    finish_training(optimizer_step.module, student, alignment, result)
    if not result.stopped and first <= settings.total_steps:
        saver.keep(progress(result, settings.total_steps, over=True), finished_state(result.weights))
    return result


@dataclass(frozen=True)
class OptimizerStep:
    """The parts of an optimizer step. `module` is the objective, wrapped as the launcher requests."""

    accelerator: Accelerator
    objective: Objective
    module: nn.Module
    optimizer: torch.optim.Optimizer
    settings: TrainConfig
    rewrite: Rewrite | None
    micro: MicroBatch

    def run(self, step: int, batch: Batch, teacher: Teacher) -> tuple[Row, float]:
        """Train on `batch`; returns the mean losses, and the gradient norm before clipping."""
        if self.rewrite is not None:
            batch = run_unsharded(self.module, partial(self.rewrite, step, batch))
        steps = self.settings.total_steps
        self.objective.align_weight = align_weight(step, steps, self.settings.align_weight)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, self.settings.learning_rate)
        with recomputing(self.objective.student, self.settings.gradient_checkpointing):
            row = self.micro.fit(lambda size: self.gradients(batch, teacher, size))
        return row, update(self.module, self.optimizer, MAX_NORM)

    def gradients(self, batch: Batch, teacher: Teacher, size: int) -> Row:
        """The gradients of `batch`, from micro-batches of `size` windows; returns the mean losses."""
        try:
            return accumulate(self.accelerator, self.module, teacher, batch, size)
        except torch.OutOfMemoryError:
            self.optimizer.zero_grad()
            raise


@dataclass(frozen=True)
class TrainingLoop:
    """Runs the steps of one training, evaluates the student and saves states. It updates `result` in place."""

    optimizer_step: OptimizerStep
    student: Model
    teacher: Teacher
    evaluator: StudentEvaluator
    result: Trained
    dtype: torch.dtype
    report: Report
    saver: StateSaver

    def run(self, batches: Iterable[tuple[int, Batch]]) -> None:
        """Train on all batches. Stops early at a loss or gradient that is not finite."""
        settings, curve, seconds = self.optimizer_step.settings, self.result.curve, 0.0
        for count, (step, batch) in enumerate(batches, 1):
            started = time.perf_counter()
            row, norm = self.optimizer_step.run(step, batch, self.teacher)
            if not (math.isfinite(row["loss"]) and math.isfinite(norm)):
                self.result.stopped = f"step {step}: loss {row['loss']:.4g}, gradient norm {norm:.4g}"
                return
            seconds += time.perf_counter() - started
            curve.append({"step": step, **row})
            if step % settings.eval_every == 0 or step == settings.total_steps:
                self.evaluate(step)
            scored = {"tokens_scored": self.evaluator.tokens} if "eval_kl" in curve[-1] else {}
            self.report(progress_row(curve[-1] | scored, step, seconds / count, settings))
            if self.saver.due(step) and step < settings.total_steps:
                self.save(step)

    def evaluate(self, step: int) -> None:
        """Measure the student, and keep a copy of its weights if its KL is the lowest so far."""
        scores = run_unsharded(self.optimizer_step.module, partial(self.evaluator.measure, self.student))
        keep_if_best(self.result, step, scores, self.student.model, self.dtype)

    def save(self, step: int) -> None:
        """Save the state after a step."""
        tensors = take_state(self.optimizer_step.objective, self.optimizer_step.optimizer, self.result.weights)
        self.saver.keep(progress(self.result, step), tensors)


def make_optimizer_step(
    student: Model, settings: TrainConfig, vocab: int, alignment: Alignment | None, rewrite: Rewrite | None
) -> OptimizerStep:
    """Make the student trainable on its device, and wrap it as the launcher requests."""
    accelerator = make_accelerator(student.model.device.type)
    if not adapted(student.model):
        student.model.requires_grad_(True)
    objective = Objective(student, settings, vocab, alignment)
    micro = MicroBatch(min(settings.batch_size, micro_batch(settings.seq_len, accelerator.device)), settings.seq_len)
    return OptimizerStep(accelerator, objective, *prepare(accelerator, objective), settings, rewrite, micro)


def finish_training(module: nn.Module, student: Model, alignment: Alignment | None, result: Trained) -> None:
    """Turn `student` into a plain model again: remove sharding and gradients."""
    if isinstance(module, Zero):
        module.end()
    if isinstance(module, ShardedObjective | Zero):
        end_sharding(student, alignment, result)
    for parameter in student.model.parameters():
        parameter.grad = None


def copy_progress(result: Trained, reached: Progress, tensors: dict[str, Tensor]) -> None:
    """Copy the progress of an interrupted run into a new result."""
    result.best_step, result.best_kl, result.curve = reached.best_step, reached.best_kl, reached.curve
    result.weights = best_weights(tensors)


def prepare(accelerator: Accelerator, objective: Objective) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The objective, wrapped as the launcher requests (plain, replicated or sharded), and the optimizer."""
    launcher = check_launch() if dist.is_initialized() else None
    if launcher == DEEPSPEED:
        optimizer = make_optimizer(objective)
        return Zero(objective, optimizer, max_norm=MAX_NORM, autocast=accelerator.autocast), optimizer
    prepared = ShardedObjective(objective, objective.student) if launcher == FSDP else accelerator.prepare(objective)
    return prepared, make_optimizer(objective)


def make_optimizer(objective: Objective) -> torch.optim.Optimizer:
    """AdamW over all trained parameters, without weight decay."""
    return torch.optim.AdamW(objective.groups(), betas=BETAS, weight_decay=0.0, fused=True)


def end_sharding(student: Model, alignment: Alignment | None, result: Trained) -> None:
    """Replace the sharded model of `student` and the projection of `alignment` by unsharded ones.

    The new model has the best weights.
    """
    student.model = unsharded_model(student.model, result.weights).to(student.model.device)
    if alignment is not None:
        unshard(alignment)


def progress(result: Trained, step: int, *, over: bool = False) -> Progress:
    """The progress of a stage, as the journal stores it."""
    return Progress(step, result.curve, result.best_step, result.best_kl, over)


def accumulate(
    accelerator: Accelerator, objective: nn.Module, teacher: Teacher, batch: Batch, size: int | None = None
) -> Row:
    """Add up the gradients of one step, one micro-batch at a time; returns the step's mean loss, kl and ce.

    A micro-batch has `size` windows, by default those of `micro_batch`. The host waits for a GPU once, at the end.
    """
    total, device = float(batch.mask[:, 1:].sum()), accelerator.device
    parts = share(batch).split(size or micro_batch(batch.ids.shape[1], device))
    rows = []
    for number, part in enumerate(parts, 1):
        placed, kept = part.to(device), move(unmasked(part.mask[:, 1:]), device)
        source = part if teacher.on_host else placed
        with torch.no_grad():  # in the teacher's own dtype, without autocast
            target = teacher.side(source.ids, source.documents)
        with no_sync(accelerator, objective, number < len(parts)):
            with accelerator.autocast():
                loss: Loss | AlignedLoss = objective(placed, target, total, kept)
            backward(accelerator, objective, loss.loss)
        rows.append(loss_sums(loss, placed.mask[:, 1:], total))
    return add_up({name: torch.stack([row[name] for row in rows]).double().sum() for name in rows[0]})


def loss_sums(loss: Loss | AlignedLoss, mask: Tensor, total: float) -> dict[str, Tensor]:
    """A micro-batch's share of the mean losses of its step, as scalars on the device."""
    sums = {"loss": loss.loss.detach()}
    sums |= {name: token_mean(getattr(loss, name), mask, total) for name in ("kl", "ce")}
    return sums | ({"align": loss.align} if isinstance(loss, AlignedLoss) else {})


def keep_if_best(result: Trained, step: int, scores: Scores, model: nn.Module, dtype: torch.dtype) -> None:
    """Add evaluation KL and nll to the curve. Keep the weights if the KL is the lowest so far.

    All processes use the KL that the first process measured.
    """
    kl, nll = from_first(scores)
    result.curve[-1] |= {"eval_kl": kl, "eval_nll": nll}
    if kl < result.best_kl:
        result.weights, result.best_step, result.best_kl = snapshot(model, dtype), step, kl


def snapshot(model: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """Copies of all parameters in main memory, in `dtype`, with adapters merged. A tied head is left out.

    Raises QCompressError if a value overflows `dtype`.
    """
    pairs = ((name, full_tensor(p.detach())) for name, p in plain_parameters(model))
    return {name: cast_finite(name, p, dtype).to("cpu", copy=p.dtype == dtype) for name, p in pairs}


def restore(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Copy the weights of a `snapshot` back into the model."""
    for name, parameter in model.named_parameters():
        parameter.data.copy_(weights[name])


def read_batches(windows: Windows, settings: TrainConfig, first: int = 1) -> Iterator[tuple[int, Batch]]:
    """Pairs of a step's number and its windows, from step `first` to the last.

    When all windows have been read, they repeat in a new order.
    """
    count, needed = len(windows.ids), settings.total_steps * settings.batch_size
    generator = torch.Generator().manual_seed(settings.seed)
    orders = [torch.arange(count)] + [
        torch.randperm(count, generator=generator) for _ in range(-(-needed // count) - 1)
    ]
    batches = torch.cat(orders)[:needed].split(settings.batch_size)
    for step in range(first, len(batches) + 1):
        yield step, as_batch(windows).rows(batches[step - 1])


def progress_row(row: Row, step: int, seconds: float, settings: TrainConfig) -> Row:
    """The row of a step with its speed and the remaining time. `seconds` is the mean time of a step."""
    speed = settings.batch_size * settings.seq_len / seconds
    left = (settings.total_steps - step) * seconds
    return {**row, "step": f"{step}/{settings.total_steps}", "tokens_per_second": round(speed, 1), "eta": round(left)}
