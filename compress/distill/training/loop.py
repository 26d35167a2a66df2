"""One training loop, on accelerate: AdamW, warm-up and cosine, clipping, the best weights by held-out KL.

The teacher, or its cache, is asked once per micro-batch. The loss of a step is a mean over all its tokens that count,
however many micro-batches they come in. Weights are float32, activations bfloat16 where a GPU takes it.
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
Rewrite = Callable[[int, Batch], Batch]  # step, and what was read for it -> what to learn from
MICRO_TOKENS = {"cpu": 1024, "cuda": 8192}  # per forward: enough for the matrix products, little enough for memory
MAX_NORM = 1.0
BETAS = (0.9, 0.95)


@dataclass
class Trained:
    """The best weights in the dtype they will be stored in, the step they are of (0: untrained), the loss curve."""

    weights: dict[str, Tensor]
    best_step: int
    best_kl: float
    curve: list[Row] = field(default_factory=list)
    stopped: str | None = None


class Scores(NamedTuple):
    """On the held-out text: mean KL(teacher ‖ student) at temperature 1, and the student's nll; nats per token."""

    kl: float
    nll: float


class AlignedLoss(NamedTuple):
    """A Loss that also holds `align`, the mean distance of the hidden states, without its weight."""

    loss: Tensor
    kl: Tensor
    ce: Tensor
    align: Tensor


class Teacher(Protocol):
    """Whatever gives targets (batch, seq - 1, …) for ids (batch, seq): a model, or a cache of what it said."""

    def side(self, ids: Tensor, documents: Tensor | None = None) -> Targets | Aligned: ...


class Model:
    """A causal LM as the loss wants it: hidden states after the final norm, head weight, and how they make logits."""

    def __init__(self, model: Any, device: torch.device):
        self.model = model.to(device)
        self.head: Head = find_head(model.config.to_dict())

    def side(self, ids: Tensor, documents: Tensor | None = None) -> LogitSource:
        """(batch, seq) ids -> its side of the loss, hidden states of all positions but the last.

        Each of the `documents`, (batch, seq), sees itself only.
        """
        apart = attention(documents, self.model)
        hidden = self.model.base_model(ids, use_cache=False, **apart).last_hidden_state[:, :-1]
        return LogitSource(hidden, self.model.get_output_embeddings().weight, self.head)

    def states(
        self, ids: Tensor, blocks: Sequence[int], documents: Tensor | None = None
    ) -> tuple[LogitSource, list[Tensor]]:
        """Its side, and what `blocks` (from 1) put out, (batch, seq - 1, width) each; the last one's after the norm."""
        apart = attention(documents, self.model)
        found = self.model.base_model(ids, use_cache=False, output_hidden_states=True, **apart)
        side = LogitSource(found.last_hidden_state[:, :-1], self.model.get_output_embeddings().weight, self.head)
        return side, [found.hidden_states[block][:, :-1] for block in blocks]


class Objective(nn.Module):
    """Student and loss in one module, so that whatever wraps a model for training wraps both."""

    def __init__(self, student: Model, settings: TrainConfig, vocab: int, alignment: Alignment | None = None):
        super().__init__()
        self.student, self.settings, self.vocab, self.alignment = student.model, settings, vocab, alignment
        self.align_weight = settings.align_weight
        self._side, self._states = student.side, student.states

    def groups(self) -> list[dict[str, Any]]:
        """What learns, as the optimizer's groups: the student's weights or adapters, then the projection by itself."""
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
        found = distill_loss(side, teacher.targets, labels, keep, **options)
        align = self.alignment(states, teacher.states, keep, total)
        return AlignedLoss(found.loss + self.align_weight * align, found.kl, found.ce, align.detach())


class Evaluator:
    """Windows that are never trained on, with the teacher's states of them, computed once."""

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
            found = distill_loss(side, teacher, *next_tokens(part.ids, part.mask), vocab=self.vocab)
            kl, nll = kl + found.kl.sum().item(), nll + found.ce.sum().item()
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

    Where `student` carries adapters only those learn. `alignment` learns beside it and needs a teacher that answers
    with `Aligned`; `rewrite` gives the text of a step in the place of what was read.

    What `saver` has of an interrupted run is taken over, and the curve and weights are those of a run that never was.

    `kl_before` is its held-out KL now. Stops at the first loss or gradient that is not finite, says so in `stopped`,
    and the best weights so far stand. Windows are read in order, and again in a new order when they are used up.
    """
    result, kept = Trained(snapshot(student.model, dtype), 0, kl_before), saver.load()
    if kept is not None:
        take_over(result, *kept)
        if kept[0].over:
            return result
    accelerator = make_accelerator()
    if not adapted(student.model):
        student.model.requires_grad_(True)
    objective = Objective(student, settings, evaluator.vocab, alignment)
    prepared, optimizer = prepare(accelerator, objective)
    if kept is not None:
        load_state(objective, optimizer, kept[1])
    first, steps, spent = (kept[0].step if kept else 0) + 1, settings.total_steps, 0.0
    for step, batch in read_batches(windows, settings, first):
        started = time.perf_counter()
        objective.align_weight = align_weight(step, steps, settings.align_weight)
        if rewrite is not None:
            batch = run_unsharded(prepared, partial(rewrite, step, batch))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, settings.learning_rate)
        with recomputing(student.model, settings.gradient_checkpointing):
            row = accumulate(accelerator, prepared, teacher, batch)
        norm = update(prepared, optimizer, MAX_NORM)
        if not (math.isfinite(row["loss"]) and math.isfinite(norm)):
            result.stopped = f"step {step}: loss {row['loss']:.4g}, gradient norm {norm:.4g}"
            break
        spent += time.perf_counter() - started
        result.curve.append({"step": step, **row})
        if step % settings.eval_every == 0 or step == steps:
            scores = run_unsharded(prepared, partial(evaluator.measure, student))
            judge(result, step, scores, student.model, dtype)
        report(progress_row(result.curve[-1], step, spent / (step - first + 1), settings))
        if saver.due(step) and step < steps:
            saver.keep(progress(result, step), take_state(objective, optimizer, result.weights))
    if isinstance(prepared, Zero):
        prepared.end()
    if isinstance(prepared, ShardedObjective | Zero):
        end_sharding(student, alignment, result)
    for parameter in student.model.parameters():
        parameter.grad = None
    if not result.stopped and first <= steps:
        saver.keep(progress(result, steps, over=True), over_state(result.weights))
    return result


def take_over(result: Trained, reached: Progress, tensors: dict[str, Tensor]) -> None:
    """Put what an interrupted run has reached in this stage in the place of a result that begins."""
    result.best_step, result.best_kl, result.curve = reached.best_step, reached.best_kl, reached.curve
    result.weights = best_weights(tensors)


def prepare(accelerator: Accelerator, objective: Objective) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The objective as the launcher wants it, alone, a replica or spread over all processes, and its optimizer."""
    way = check_launch() if dist.is_initialized() else None
    if way == DEEPSPEED:
        optimizer = make_optimizer(objective)
        return Zero(objective, optimizer, max_norm=MAX_NORM, autocast=accelerator.autocast), optimizer
    prepared = ShardedObjective(objective, objective.student) if way == FSDP else accelerator.prepare(objective)
    return prepared, make_optimizer(objective)


def make_optimizer(objective: Objective) -> torch.optim.Optimizer:
    """AdamW of all that learns, without weight decay."""
    return torch.optim.AdamW(objective.groups(), betas=BETAS, weight_decay=0.0, fused=True)


def end_sharding(student: Model, alignment: Alignment | None, result: Trained) -> None:
    """Give `student` its best weights in a model that is not spread, and `alignment` all of its projection."""
    student.model = unsharded_model(student.model, result.weights).to(student.model.device)
    if alignment is not None:
        unshard(alignment)


def progress(result: Trained, step: int, *, over: bool = False) -> Progress:
    """How far a stage is, as the journal keeps it."""
    return Progress(step, result.curve, result.best_step, result.best_kl, over)


def accumulate(accelerator: Accelerator, objective: nn.Module, teacher: Teacher, batch: Batch) -> Row:
    """Gradients of one step's windows, micro-batch by micro-batch; its mean loss, kl and ce."""
    total = float(batch.mask[:, 1:].sum())
    sums = {"loss": 0.0, "kl": 0.0, "ce": 0.0}
    device = accelerator.device
    parts = share(batch).to(device).split(micro_batch(batch.ids.shape[1], device))
    for number, part in enumerate(parts, 1):
        with torch.no_grad(), accelerator.autocast():
            target = teacher.side(part.ids, part.documents)
        with no_sync(accelerator, objective, number < len(parts)):
            with accelerator.autocast():
                found: Loss | AlignedLoss = objective(part, target, total)
            backward(accelerator, objective, found.loss)
        sums["loss"] += found.loss.item()
        if isinstance(found, AlignedLoss):
            sums["align"] = sums.get("align", 0.0) + found.align.item()
        for name in ("kl", "ce"):
            sums[name] += token_mean(getattr(found, name), part.mask[:, 1:], total).item()
    return add_up(sums, device)


def judge(result: Trained, step: int, scores: Scores, model: nn.Module, dtype: torch.dtype) -> None:
    """Note held-out KL and nll in the curve; keep the weights if the first process's KL is the least so far."""
    kl, nll = from_first(scores)
    result.curve[-1] |= {"eval_kl": kl, "eval_nll": nll}
    if kl < result.best_kl:
        result.weights, result.best_step, result.best_kl = snapshot(model, dtype), step, kl


def snapshot(model: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """A copy of every parameter once (a tied head is left out) in main memory, adapters merged.

    QCompressError if `dtype` overflows.
    """
    pairs = ((name, full_tensor(p.detach())) for name, p in plain_parameters(model))
    return {name: cast_finite(name, p, dtype).to("cpu", copy=p.dtype == dtype) for name, p in pairs}


def restore(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Give a model the weights of a snapshot, rounded as they were stored."""
    for name, parameter in model.named_parameters():
        parameter.data.copy_(weights[name])


def micro_batch(seq_len: int, device: torch.device) -> int:
    """Windows per forward."""
    return max(1, MICRO_TOKENS.get(device.type, MICRO_TOKENS["cpu"]) // seq_len)


def read_batches(windows: Windows, settings: TrainConfig, first: int = 1) -> Iterator[tuple[int, Batch]]:
    """Step and its `batch_size` windows, from step `first` to the last.

    Used-up windows come again, each time in a new order.
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
    """The curve's row with the speed and the time to go, at `seconds` a step."""
    speed = settings.batch_size * settings.seq_len / seconds
    left = (settings.total_steps - step) * seconds
    return {**row, "step": f"{step}/{settings.total_steps}", "tokens_per_second": round(speed, 1), "eta": round(left)}


def check_head(model: Model, name: str) -> None:
    """QCompressError when the model's logits are not what its final hidden states and `Head` make of them."""
    ids = torch.arange(8, device=model.model.device)[None]
    with torch.no_grad():
        side, expected = model.side(ids), model.model(ids, use_cache=False).logits[:, :-1].float()
        nll = cross_entropy(side, ids[:, 1:], torch.ones_like(ids[:, 1:], dtype=torch.bool), vocab=expected.shape[-1])
    wanted = nn.functional.cross_entropy(expected.flatten(0, 1), ids[0, 1:], reduction="none")
    if not torch.allclose(nll.flatten(), wanted, rtol=1e-2, atol=1e-2):
        kind = type(model.model).__name__
        raise QCompressError(
            f"{name}: the head of a {kind} is not known here (bias, scale or cap); distill another family"
        )
