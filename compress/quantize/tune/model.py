"""What tuning trains: a quantized model whose scales, norms and biases are stored values times (1 + m)."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from compress.core.grid import QuantizedWeight, split_groups
from compress.model.blocks import Block
from compress.model.precision import matmul_in

BETAS = (0.9, 0.95)


@dataclass(frozen=True)
class TuneSettings:
    """`epochs` over the windows, `batch` windows a step, the peak `learning_rate` of the multipliers.

    Before them `block_epochs` of every block by itself, at a peak of `block_learning_rate`. The last `held_out` windows
    judge and are not trained on. A CPU multiplies in `matmul_dtype` as it trains; what judges,
    and the 16-bit model's answers, are float32.
    """

    epochs: int = 2
    block_epochs: int = 1
    batch: int = 4
    learning_rate: float = 3e-4
    block_learning_rate: float = 2e-3
    held_out: int = 2
    matmul_dtype: torch.dtype = torch.float32


class TunedWeights:
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

    def snapshot(self, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        """A copy of these multipliers, or of all."""
        return {name: self.multipliers[name].clone() for name in names or self.multipliers}

    def restore(self, kept: dict[str, Tensor]) -> None:
        """Multipliers as a snapshot has them."""
        for name, value in kept.items():
            self.multipliers[name].copy_(value)

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


def batches(count: int, settings: TuneSettings, epochs: int) -> list[Tensor]:
    """Indices of the windows of every step: each epoch sees every window once, in an order of its own."""
    generator = torch.Generator().manual_seed(0)
    orders = [torch.randperm(count, generator=generator) for _ in range(epochs)]
    return [part for order in orders for part in order.split(settings.batch)]


class Adam:
    """Adam over some of a student's multipliers, whose rate is said at every step."""

    def __init__(self, multipliers: Iterable[Tensor]):
        self._adam = torch.optim.Adam(list(multipliers), betas=BETAS, foreach=True)

    def step(self, rate: float) -> None:
        for group in self._adam.param_groups:
            group["lr"] = rate
        self._adam.step()


def backward(
    student: TunedWeights,
    block: Block,
    run: Callable[[Tensor], Tensor],
    state: Tensor,
    loss: Callable[[Tensor], Tensor],
    matmul_dtype: torch.dtype,
) -> Tensor:
    """The gradient of `loss` of what `run` makes of the block's input `state`, both (batch, seq, hidden); those of the
    block's multipliers are left where Adam finds them."""
    names = multiplier_names(student, block)
    trained = {name: block.module.get_parameter(path) for path, name in names.items()}
    with torch.enable_grad():
        state = state.detach().requires_grad_()
        for parameter in trained.values():
            parameter.requires_grad_()
        with matmul_in(matmul_dtype):
            output = run(state)
        loss(output).backward()
    for name, parameter in trained.items():
        multiplier = student.multipliers[name]
        multiplier.grad = multiplier_gradient(parameter, multiplier.to(parameter.device)).to(multiplier.device)
    assert state.grad is not None
    return state.grad


def multiplier_names(student: TunedWeights, block: Block) -> dict[str, str]:
    """By a trained parameter's path in the block, its multiplier's name: a linear's for scales, else its own."""
    full = {path: f"{block.name}.{path}" for path, _ in block.module.named_parameters()}
    names = {path: student.module(name) or name for path, name in full.items()}
    return {path: name for path, name in names.items() if name in student.multipliers}


def multiplier_gradient(parameter: nn.Parameter, multiplier: Tensor) -> Tensor:
    """dL/dm from dL/dw: w = w₀ · (1 + m), so it is w₀ · dL/dw, summed over each group of a linear's row."""
    assert parameter.grad is not None
    product = parameter.grad * parameter.detach()
    if product.shape != multiplier.shape:
        product = split_groups(product, product.shape[1] // multiplier.shape[1]).sum(-1)
    return product / (1 + multiplier)
