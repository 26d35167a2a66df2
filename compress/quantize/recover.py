"""Recovery: codes and zeros stay as they are; scales, norms and biases learn to give the 16-bit model's answers back.

    minimise  mean KL(p_teacher ‖ p_student) over calibration tokens,   parameter = stored value · (1 + m)

by Adam over the multipliers m: EfficientQAT's second phase (Chen et al. 2024, https://arxiv.org/abs/2407.11062) and
mlx-lm's DWQ do the like. Both models are read block by block: memory holds one block, the inputs of every block for
one batch of windows, and the multipliers with Adam's two means. A parameter is rounded as the disk will hold it before
it is used, so what is judged is what is written; the best on windows that are not trained on is the result.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from compress.losses import Side, distill_loss, find_head
from compress.model.blocks import Block, BlockModel
from compress.quantize.grid import QuantizedWeight, split_groups
from compress.schedule import learning_rate

Row = dict[str, Any]
Report = Callable[[Row], None]
BETAS = (0.9, 0.95)


@dataclass(frozen=True)
class RecoverSettings:
    """`epochs` over the windows, `batch` windows a step, the peak `learning_rate` of the multipliers.

    The last `held_out` windows judge and are not trained on; 0 means an eighth of them.
    """

    epochs: int = 2
    batch: int = 4
    learning_rate: float = 2e-3
    held_out: int = 0


@dataclass(frozen=True)
class Recovered:
    """multipliers: by module path for scales, by parameter name for the rest; KL in nats before and after."""

    multipliers: dict[str, Tensor]
    kl_before: float
    kl: float
    step: int


class Student:
    """A quantized model with multipliers: `weights` gives any parameter by its plain name, as it will be stored.

    `packed` reads the codes of a linear by its module path, `plain` any other parameter; `shapes` are those of the
    multipliers, (out, groups) for a linear. Nothing read is kept.
    """

    def __init__(
        self,
        packed: Callable[[str], QuantizedWeight],
        plain: Callable[[str], Tensor],
        shapes: Mapping[str, tuple[int, ...]],
        dtype: torch.dtype,
    ):
        self._packed, self._plain, self._dtype = packed, plain, dtype
        self.multipliers = {name: torch.zeros(shape) for name, shape in shapes.items()}

    def weights(self, name: str) -> Tensor:
        return self.plain(name) if (module := self.module(name)) is None else self.packed(module).dequantize()

    def module(self, name: str) -> str | None:
        """The linear whose weight goes by this name; None for parameters that are not quantized."""
        module, _, leaf = name.rpartition(".")
        return module if leaf == "weight" and module in self.multipliers else None

    def packed(self, module: str) -> QuantizedWeight:
        """The codes of a linear with its scales as they are now."""
        weight = self._packed(module)
        return replace(weight, scales=self._multiplied(weight.scales, module))

    def plain(self, name: str) -> Tensor:
        """Any other parameter as it is now; float32 where it is trained."""
        value = self._plain(name)
        return self._multiplied(value.float(), name) if name in self.multipliers else value

    def _multiplied(self, value: Tensor, name: str) -> Tensor:
        factor = 1 + self.multipliers[name].to(value.device)
        return (value * factor).to(self._dtype).float()


@torch.no_grad()
def recover(
    teacher: BlockModel,
    student_model: BlockModel,
    student: Student,
    ids: Tensor,
    settings: RecoverSettings,
    report: Report = lambda row: None,
) -> Recovered:
    """The multipliers with the lowest KL on the held-out ones of `ids` (n, seq); zeros when nothing was lower.

    `student_model` takes its weights from `student`. ValueError for fewer than two windows, or a KL that is not finite.
    """
    if len(ids) < 2:
        raise ValueError(f"recovery trains on windows and judges on others: {len(ids)} is too few")
    held = settings.held_out or max(1, len(ids) // 8)
    answers = final_states(teacher, ids, settings.batch)
    trainer = Trainer(teacher, student_model, student, settings)
    with teacher.ends(head=True), student_model.ends(head=True):

        def judge() -> float:
            return mean_kl(teacher, student_model, ids[-held:], answers[-held:], settings.batch)

        best = before = judge()
        kept, kept_step = trainer.snapshot(), 0
        steps = settings.epochs * math.ceil((len(ids) - held) / settings.batch)
        for step, rows in enumerate(batches(len(ids) - held, settings), 1):
            started = time.perf_counter()
            loss = trainer.step(ids[rows], answers[rows], learning_rate(step, steps, settings.learning_rate))
            line = {"recover": f"{step}/{steps}", "kl": loss, "seconds": round(time.perf_counter() - started, 1)}
            if step == steps or step % max(1, steps // (2 * settings.epochs)) == 0:
                line["held_out_kl"] = now = judge()
                if now < best:
                    best, kept, kept_step = now, trainer.snapshot(), step
            report(line)
    return Recovered(kept, before, best, kept_step)


def batches(count: int, settings: RecoverSettings) -> list[Tensor]:
    """Indices of the windows of every step: each epoch sees every window once, in an order of its own."""
    generator = torch.Generator().manual_seed(0)
    orders = [torch.randperm(count, generator=generator) for _ in range(settings.epochs)]
    return [part for order in orders for part in order.split(settings.batch)]


def final_states(model: BlockModel, ids: Tensor, batch: int) -> Tensor:
    """(n, seq, hidden) after the last block: the model read once, block by block."""
    with model.ends():
        states = [model.embed(part) for part in ids.split(batch)]
    for index, block in model.in_order():
        states = [model.runner(block, index)(part) for part in states]
    return torch.cat(states)


def block_states(model: BlockModel, ids: Tensor) -> list[Tensor]:
    """The input of every block, and what the last one puts out; each (batch, seq, hidden). Needs `ends`."""
    states = [model.embed(ids)]
    for index, block in model.in_order():
        states.append(model.runner(block, index)(states[-1]))
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

    def __init__(self, teacher: BlockModel, model: BlockModel, student: Student, settings: RecoverSettings):
        self.teacher, self.model, self.student, self.settings = teacher, model, student, settings
        self.adam = torch.optim.Adam(list(student.multipliers.values()), betas=BETAS, foreach=True)

    def snapshot(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.student.multipliers.items()}

    def step(self, ids: Tensor, answers: Tensor, rate: float) -> float:
        """One update of all multipliers; the KL before it."""
        states = block_states(self.model, ids)
        loss, gradient = kl_gradient(self.teacher, self.model, states.pop(), answers, ids)
        if not math.isfinite(loss):
            raise ValueError(f"recovery: KL is {loss}; a lower learning rate than {rate:g} is needed")
        for index in reversed(range(len(self.model))):
            with self.model.block(index) as block:
                gradient = self.backward(block, index, states.pop(), gradient)
        for group in self.adam.param_groups:
            group["lr"] = rate
        self.adam.step()
        return loss

    def backward(self, block: Block, index: int, state: Tensor, gradient: Tensor) -> Tensor:
        """The gradient for the block's input; those of its multipliers are left where Adam finds them."""
        trained = {
            name: parameter
            for name, parameter in block.module.named_parameters()
            if self.multiplier_name(block, name) in self.student.multipliers
        }
        with torch.enable_grad():
            state = state.detach().requires_grad_()
            for parameter in trained.values():
                parameter.requires_grad_()
            self.model.runner(block, index)(state).backward(gradient)
        for name, parameter in trained.items():
            multiplier = self.student.multipliers[self.multiplier_name(block, name)]
            multiplier.grad = multiplier_gradient(parameter, multiplier.to(parameter.device)).to(multiplier.device)
        assert state.grad is not None
        return state.grad

    def multiplier_name(self, block: Block, path: str) -> str:
        """Scales go by the linear's path, everything else by the parameter's."""
        full = f"{block.name}.{path}"
        return self.student.module(full) or full


def multiplier_gradient(parameter: nn.Parameter, multiplier: Tensor) -> Tensor:
    """dL/dm from dL/dw: w = w₀ · (1 + m), so it is w₀ · dL/dw, summed over each group of a linear's row."""
    assert parameter.grad is not None
    product = parameter.grad * parameter.detach()
    if product.shape != multiplier.shape:
        product = split_groups(product, product.shape[1] // multiplier.shape[1]).sum(-1)
    return product / (1 + multiplier)


def side(model: BlockModel, hidden: Tensor) -> Side:
    """One model's part of the loss, from (batch, seq, hidden) after its last block. Needs `ends(head=True)`."""
    head = model.model.get_output_embeddings()
    return Side(model.final_norm(hidden), head.weight, find_head(model.model.config.to_dict()))
