"""The training loop, on accelerate: AdamW, warm-up and cosine, clipping, the best weights by evaluation KL.

The teacher, or its cache, runs once per micro-batch. The loss of a step is the mean over all its unmasked tokens,
whatever the number of micro-batches. Weights are float32; activations are bfloat16 on GPUs that support it.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn

from calibration.windows import Windows
from compress.checkpoint.finite import cast_finite
from compress.core.errors import QCompressError
from compress.core.schedule import learning_rate
from compress.distill.config import TrainConfig
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
from compress.distill.text.packing import Batch, as_batch, attention
from compress.distill.training.align import Aligned, Alignment, align_weight
from compress.distill.training.gradient_checkpointing import recomputing
from compress.distill.training.journal import NOWHERE, Progress, StateSaver
from compress.distill.training.lora import adapted, plain_parameters
from compress.distill.training.state import best_weights, load_state, over_state, take_state
from compress.losses import (
    Head,
    LogitSource,
    Loss,
    Targets,
    cross_entropy,
    distill_loss,
    find_head,
    next_tokens,
    token_mean,
)

Row = dict[str, Any]
Report = Callable[[Row], None]
Rewrite = Callable[[int, Batch], Batch]  # step and its windows -> the windows to train on
MICRO_TOKENS = {"cpu": 1024, "cuda": 8192}  # per forward pass: fast matrix products in little memory
MAX_NORM = 1.0
BETAS = (0.9, 0.95)


@dataclass
class Trained:
    """The best weights in their stored dtype, their step (0: untrained) and evaluation KL, and the loss curve."""

    weights: dict[str, Tensor]
    best_step: int
    best_kl: float
    curve: list[Row] = field(default_factory=list)
    stopped: str | None = None


class Scores(NamedTuple):
    """On the evaluation text: mean KL(teacher ‖ student) at temperature 1 and the student's nll, in nats per token."""

    kl: float
    nll: float


class AlignedLoss(NamedTuple):
    """A Loss with `align`, the unweighted mean distance between hidden states."""

    loss: Tensor
    kl: Tensor
    ce: Tensor
    align: Tensor


class Teacher(Protocol):
    """A source of targets (batch, seq - 1, …) for ids (batch, seq): a model, or a cache of its outputs."""

    def side(self, ids: Tensor, documents: Tensor | None = None) -> Targets | Aligned: ...


class Model:
    """A causal LM that returns hidden states after the final norm, and the head that turns them into logits."""

    def __init__(self, model: Any, device: torch.device):
        self.model = model.to(device)
        self.head: Head = find_head(model.config.to_dict())

    def side(self, ids: Tensor, documents: Tensor | None = None) -> LogitSource:
        """(batch, seq) ids -> hidden states of all positions but the last, and the head.

        Each of the `documents`, (batch, seq), attends to itself only.
        """
        apart = attention(documents, self.model)
        hidden = self.model.base_model(ids, use_cache=False, **apart).last_hidden_state[:, :-1]
        return LogitSource(hidden, self.model.get_output_embeddings().weight, self.head)

    def states(
        self, ids: Tensor, blocks: Sequence[int], documents: Tensor | None = None
    ) -> tuple[LogitSource, list[Tensor]]:
        """`side`, and the outputs (batch, seq - 1, width) of `blocks`, numbered from 1; the last is after the norm."""
        apart = attention(documents, self.model)
        outputs = self.model.base_model(ids, use_cache=False, output_hidden_states=True, **apart)
        side = LogitSource(outputs.last_hidden_state[:, :-1], self.model.get_output_embeddings().weight, self.head)
        return side, [outputs.hidden_states[block][:, :-1] for block in blocks]


class Objective(nn.Module):
    """Student and loss in one module, so that a wrapper for distributed training wraps both."""

    def __init__(self, student: Model, settings: TrainConfig, vocab: int, alignment: Alignment | None = None):
        super().__init__()
        self.student, self.settings, self.vocab, self.alignment = student.model, settings, vocab, alignment
        self.align_weight = settings.align_weight
        self._side, self._states = student.side, student.states

    def groups(self) -> list[dict[str, Any]]:
        """The optimizer's parameter groups: the student's weights or adapters, then the projection."""
        groups = [[p for p in self.student.parameters() if p.requires_grad]]
        groups += [] if self.alignment is None else [list(self.alignment.parameters())]
        return [{"params": group} for group in groups]

    def forward(self, batch: Batch, teacher: Targets | Aligned, total: float) -> Loss | AlignedLoss:
        labels, keep = next_tokens(batch.ids, batch.mask)
        options = {name: getattr(self.settings, name) for name in ("alpha", "temperature", "divergence", "beta")}
        options |= {"total": total, "vocab": self.vocab}
        if self.alignment is None or not isinstance(teacher, Aligned):
            targets = teacher.targets if isinstance(teacher, Aligned) else teacher
            return distill_loss(self._side(batch.ids, batch.documents), targets, labels, keep, **options)
        side, states = self._states(batch.ids, [block for block, _ in self.alignment.pairs], batch.documents)
        loss = distill_loss(side, teacher.targets, labels, keep, **options)
        align = self.alignment(states, teacher.states, keep, total)
        return AlignedLoss(loss.loss + self.align_weight * align, loss.kl, loss.ce, align.detach())


class Evaluator:
    """Measures a student on windows that are never trained on. The teacher's states are computed once."""

    @torch.no_grad()
    def __init__(self, teacher: Model, windows: Windows, vocab: int):
        device = teacher.model.device
        self.vocab, micro = vocab, micro_batch(windows.ids.shape[1], device)
        self.parts: list[tuple[Batch, LogitSource]] = []
        nll = 0.0
        self.tokens = int(windows.mask[:, 1:].sum())
        for part in as_batch(windows).to(device).split(micro):
            side = teacher.side(part.ids, part.documents)
            self.parts.append((part, side))
            nll += cross_entropy(side, *next_tokens(part.ids, part.mask), vocab=vocab).sum().item()
        self.teacher_nll = nll / self.tokens

    @torch.no_grad()
    def measure(self, student: Model) -> Scores:
        kl = nll = 0.0
        for part, teacher in self.parts:
            side = student.side(part.ids, part.documents)
            loss = distill_loss(side, teacher, *next_tokens(part.ids, part.mask), vocab=self.vocab)
            kl, nll = kl + loss.kl.sum().item(), nll + loss.ce.sum().item()
        return Scores(kl / self.tokens, nll / self.tokens)


def train(
    student: Model,
    teacher: Teacher,
    windows: Windows,
    evaluator: Evaluator,
    settings: TrainConfig,
    *,
    kl_before: float,
    dtype: torch.dtype,
    report: Report = lambda row: None,
    alignment: Alignment | None = None,
    rewrite: Rewrite | None = None,
    saver: StateSaver = NOWHERE,
) -> Trained:
    """Train `student` in place for the settings' steps; returns its best weights in `dtype`, adapters merged.

    If `student` carries adapters, only they are trained. `alignment` is trained too and needs a teacher that returns
    `Aligned`. `rewrite` replaces the windows of a step. `saver` continues an interrupted run to the same curve and
    weights. `kl_before` is the evaluation KL before training. Training stops at the first loss or gradient that is not
    finite; `stopped` then gives the reason, and the best weights so far are returned. Windows are read in order, and
    again in a new order when they are used up.
    """
    result, saved = Trained(snapshot(student.model, dtype), 0, kl_before), saver.load()
    if saved is not None:
        take_over(result, *saved)
        if saved[0].over:
            return result
    trainer = make_trainer(student, settings, evaluator.vocab, alignment)
    if saved is not None:
        load_state(trainer.objective, trainer.optimizer, saved[1])
    first, steps, seconds = (saved[0].step if saved else 0) + 1, settings.total_steps, 0.0
    for step, batch in read_batches(windows, settings, first):
        started = time.perf_counter()
        if rewrite is not None:
            batch = run_unsharded(trainer.module, partial(rewrite, step, batch))
        row, norm = trainer.step(step, batch, teacher)
        if not (math.isfinite(row["loss"]) and math.isfinite(norm)):
            result.stopped = f"step {step}: loss {row['loss']:.4g}, gradient norm {norm:.4g}"
            break
        seconds += time.perf_counter() - started
        result.curve.append({"step": step, **row})
        if step % settings.eval_every == 0 or step == steps:
            scores = run_unsharded(trainer.module, partial(evaluator.measure, student))
            keep_if_best(result, step, scores, student.model, dtype)
        report(progress_row(result.curve[-1], step, seconds / (step - first + 1), settings))
        if saver.due(step) and step < steps:
            saver.keep(progress(result, step), take_state(trainer.objective, trainer.optimizer, result.weights))
    finish_training(trainer, student, alignment, result)
    if not result.stopped and first <= steps:
        saver.keep(progress(result, steps, over=True), over_state(result.weights))
    return result


@dataclass(frozen=True)
class Trainer:
    """The parts of one training: the objective, the module that a launcher made of it, and the optimizer."""

    accelerator: Accelerator
    objective: Objective
    module: nn.Module
    optimizer: torch.optim.Optimizer
    settings: TrainConfig

    def step(self, step: int, batch: Batch, teacher: Teacher) -> tuple[Row, float]:
        """One optimizer step on `batch`; returns its mean losses and the gradient norm before clipping."""
        steps = self.settings.total_steps
        self.objective.align_weight = align_weight(step, steps, self.settings.align_weight)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, self.settings.learning_rate)
        with recomputing(self.objective.student, self.settings.gradient_checkpointing):
            row = accumulate(self.accelerator, self.module, teacher, batch)
        return row, update(self.module, self.optimizer, MAX_NORM)


def make_trainer(student: Model, settings: TrainConfig, vocab: int, alignment: Alignment | None) -> Trainer:
    """Make the student trainable and wrap it as the launcher asks."""
    accelerator = make_accelerator()
    if not adapted(student.model):
        student.model.requires_grad_(True)
    objective = Objective(student, settings, vocab, alignment)
    return Trainer(accelerator, objective, *prepare(accelerator, objective), settings)


def finish_training(trainer: Trainer, student: Model, alignment: Alignment | None, result: Trained) -> None:
    """Undo sharding and drop all gradients, so that `student` is a plain model."""
    if isinstance(trainer.module, Zero):
        trainer.module.end()
    if isinstance(trainer.module, ShardedObjective | Zero):
        end_sharding(student, alignment, result)
    for parameter in student.model.parameters():
        parameter.grad = None


def take_over(result: Trained, reached: Progress, tensors: dict[str, Tensor]) -> None:
    """Copy the progress of an interrupted run into a new result."""
    result.best_step, result.best_kl, result.curve = reached.best_step, reached.best_kl, reached.curve
    result.weights = best_weights(tensors)


def prepare(accelerator: Accelerator, objective: Objective) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The objective, wrapped as the launcher asks (alone, replicated or sharded), and its optimizer."""
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
    """Give `student` an unsharded model with its best weights, and `alignment` its whole projection."""
    student.model = unsharded_model(student.model, result.weights).to(student.model.device)
    if alignment is not None:
        unshard(alignment)


def progress(result: Trained, step: int, *, over: bool = False) -> Progress:
    """The progress of a stage, as the journal stores it."""
    return Progress(step, result.curve, result.best_step, result.best_kl, over)


def accumulate(accelerator: Accelerator, objective: nn.Module, teacher: Teacher, batch: Batch) -> Row:
    """Add up the gradients of one step's windows, one micro-batch at a time; returns its mean loss, kl and ce."""
    total = float(batch.mask[:, 1:].sum())
    sums = {"loss": 0.0, "kl": 0.0, "ce": 0.0}
    device = accelerator.device
    parts = share(batch).to(device).split(micro_batch(batch.ids.shape[1], device))
    for number, part in enumerate(parts, 1):
        with torch.no_grad(), accelerator.autocast():
            target = teacher.side(part.ids, part.documents)
        with no_sync(accelerator, objective, number < len(parts)):
            with accelerator.autocast():
                loss: Loss | AlignedLoss = objective(part, target, total)
            backward(accelerator, objective, loss.loss)
        sums["loss"] += loss.loss.item()
        if isinstance(loss, AlignedLoss):
            sums["align"] = sums.get("align", 0.0) + loss.align.item()
        for name in ("kl", "ce"):
            sums[name] += token_mean(getattr(loss, name), part.mask[:, 1:], total).item()
    return add_up(sums, device)


def keep_if_best(result: Trained, step: int, scores: Scores, model: nn.Module, dtype: torch.dtype) -> None:
    """Add evaluation KL and nll to the curve; keep the weights if the first process's KL is the lowest so far."""
    kl, nll = from_first(scores)
    result.curve[-1] |= {"eval_kl": kl, "eval_nll": nll}
    if kl < result.best_kl:
        result.weights, result.best_step, result.best_kl = snapshot(model, dtype), step, kl


def snapshot(model: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """A copy of every parameter in main memory, adapters merged, without a tied head. QCompressError on overflow."""
    pairs = ((name, full_tensor(p.detach())) for name, p in plain_parameters(model))
    return {name: cast_finite(name, p, dtype).to("cpu", copy=p.dtype == dtype) for name, p in pairs}


def restore(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Copy the weights of a snapshot into a model."""
    for name, parameter in model.named_parameters():
        parameter.data.copy_(weights[name])


def micro_batch(seq_len: int, device: torch.device) -> int:
    """Windows per forward pass."""
    return max(1, MICRO_TOKENS.get(device.type, MICRO_TOKENS["cpu"]) // seq_len)


def read_batches(windows: Windows, settings: TrainConfig, first: int = 1) -> Iterator[tuple[int, Batch]]:
    """(step, `batch_size` windows) from step `first` to the last. Used-up windows repeat in a new order."""
    count, needed = len(windows.ids), settings.total_steps * settings.batch_size
    generator = torch.Generator().manual_seed(settings.seed)
    orders = [torch.arange(count)] + [
        torch.randperm(count, generator=generator) for _ in range(-(-needed // count) - 1)
    ]
    batches = torch.cat(orders)[:needed].split(settings.batch_size)
    for step in range(first, len(batches) + 1):
        yield step, as_batch(windows).rows(batches[step - 1])


def progress_row(row: Row, step: int, seconds: float, settings: TrainConfig) -> Row:
    """The curve's row with the speed and the seconds left, at `seconds` per step."""
    speed = settings.batch_size * settings.seq_len / seconds
    left = (settings.total_steps - step) * seconds
    return {**row, "step": f"{step}/{settings.total_steps}", "tokens_per_second": round(speed, 1), "eta": round(left)}


def check_head(model: Model, name: str) -> None:
    """QCompressError when the model's logits differ from those that `Head` computes from its hidden states."""
    ids = torch.arange(8, device=model.model.device)[None]
    with torch.no_grad():
        side, expected = model.side(ids), model.model(ids, use_cache=False).logits[:, :-1].float()
        nll = cross_entropy(side, ids[:, 1:], torch.ones_like(ids[:, 1:], dtype=torch.bool), vocab=expected.shape[-1])
    reference = nn.functional.cross_entropy(expected.flatten(0, 1), ids[0, 1:], reduction="none")
    if not torch.allclose(nll.flatten(), reference, rtol=1e-2, atol=1e-2):
        kind = type(model.model).__name__
        raise QCompressError(
            f"{name}: the output head of {kind} is not supported (bias, scale or cap); use another model family"
        )
