"""The model that tuning trains: every trained scale, norm and bias is its stored value times (1 + m)."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from compress.core.config import TUNE_BATCH
from compress.core.grid import QuantizedWeight, split_groups
from compress.model.blocks import Block
from compress.model.precision import matmul_in

BETAS = (0.9, 0.95)


@dataclass(frozen=True)
class TuneSettings:
    """How multipliers are trained.

    First each block is trained alone for `block_epochs`, then the whole model for `epochs`. A step reads `batch`
    windows. Learning rates are the peaks of their schedules. The last `held_out` windows only measure the KL; no step
    reads them. Training computes matrix products in `matmul_dtype`. Measurements and the teacher use float32.
    """

    epochs: int = 2
    block_epochs: int = 1
    batch: int = TUNE_BATCH
    learning_rate: float = 3e-4
    block_learning_rate: float = 2e-3
    held_out: int = 2
    matmul_dtype: torch.dtype = torch.float32


class TunedWeights:
    """A quantized model with a multiplier for every trained number: scales of linears, norms and biases.

    `packed` reads a quantized linear by its module path. `plain` reads any other parameter by its name. `shapes` has
    the shape of each multiplier tensor, which is (out, groups) for a linear. Multipliers are on `device`. No weight
    stays in memory after a read.
    """

    def __init__(
        self,
        packed: Callable[[str], QuantizedWeight],
        plain: Callable[[str], Tensor],
        shapes: Mapping[str, tuple[int, ...]],
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ):
        self._packed, self._plain, self._dtype = packed, plain, dtype
        self.multipliers = {name: torch.zeros(shape, device=device) for name, shape in shapes.items()}

    def snapshot(self, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        """A copy of the multipliers with these names. Without names, a copy of all multipliers."""
        return {name: self.multipliers[name].clone() for name in names or self.multipliers}

    def restore(self, snapshot: dict[str, Tensor]) -> None:
        """Copy the multipliers of a snapshot back."""
        for name, value in snapshot.items():
            self.multipliers[name].copy_(value)

    def weights(self, name: str) -> Tensor:
        """The tuned value of the 16-bit model's parameter `name`, rounded as it will be stored."""
        return self.plain(name) if (module := self.module(name)) is None else self.packed(module).dequantize()

    def module(self, name: str) -> str | None:
        """The path of the quantized linear that has the weight `name`. None if `name` is another kind of parameter."""
        module, _, leaf = name.rpartition(".")
        return module if leaf == "weight" and module in self.multipliers else None

    def packed(self, module: str) -> QuantizedWeight:
        """The quantized linear at the path `module`, with trained scales."""
        weight = self._packed(module)
        return replace(weight, scales=self._multiplied(weight.scales, module))

    def plain(self, name: str) -> Tensor:
        """The parameter `name`, which is not in a quantized linear. It is float32 if it is trained."""
        value = self._plain(name)
        return self._multiplied(value.float(), name) if name in self.multipliers else value

    def _multiplied(self, value: Tensor, name: str) -> Tensor:
        multiplier = self.multipliers[name]
        return (value.to(multiplier.device) * (1 + multiplier)).to(self._dtype).float()


def batches(count: int, settings: TuneSettings, epochs: int) -> list[Tensor]:
    """The indices of the windows that each step reads. Each epoch reads every window once, in a new random order."""
    generator = torch.Generator().manual_seed(0)
    orders = [torch.randperm(count, generator=generator) for _ in range(epochs)]
    return [part for order in orders for part in order.split(settings.batch)]


class Adam:
    """Adam over multipliers. Each step gets its learning rate as an argument."""

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
    """The gradient of loss(run(state)) with respect to `state`, the block's input (batch, seq, hidden).

    The gradients of the block's multipliers are stored in their `grad`.
    """
    names = multiplier_names(student, block)
    trained = {name: block.module.get_parameter(path) for path, name in names.items()}
    with torch.enable_grad():
        state = state.detach().requires_grad_()
        for parameter in trained.values():
            parameter.requires_grad_()
        with matmul_in(matmul_dtype, state.device.type):
            output = run(state)
        loss(output).backward()
    for name, parameter in trained.items():
        multiplier = student.multipliers[name]
        multiplier.grad = multiplier_gradient(parameter, multiplier)
    assert state.grad is not None
    return state.grad


def multiplier_names(student: TunedWeights, block: Block) -> dict[str, str]:
    """The names of the multipliers for a block's trained parameters, by the parameter's path in the block."""
    full = {path: f"{block.name}.{path}" for path, _ in block.module.named_parameters()}
    names = {path: student.module(name) or name for path, name in full.items()}
    return {path: name for path, name in names.items() if name in student.multipliers}


def multiplier_gradient(parameter: nn.Parameter, multiplier: Tensor) -> Tensor:
    """The gradient dL/dm of a multiplier, from dL/dw of its weights.

    Since w = w₀ · (1 + m), it is the sum of w₀ · dL/dw over the weights that share m: one group in a row of a linear.
    """
    assert parameter.grad is not None
    product = parameter.grad * parameter.detach()
    if product.shape != multiplier.shape:
        product = split_groups(product, product.shape[1] // multiplier.shape[1]).sum(-1)
    return product / (1 + multiplier)
