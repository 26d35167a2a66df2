"""The methods as a table: from one stage's weights and Hessian to codes. A new method is one file and one row."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.core.grid import QuantizedWeight
from compress.quantize.methods.awq import clipped, search_scale
from compress.quantize.methods.gptq import Factor, gptq, inverse_factor
from compress.quantize.methods.parallel_rows import each_share
from compress.quantize.methods.refine import refine
from compress.quantize.methods.rtn import rtn


@dataclass(frozen=True)
class Problem:
    """Linears that share an input, rows stacked: weight (out, in), hessian (in, in), the grid, and who may be scaled.

    `share` neighbouring heads of `width` channels must share their scales; share 0: no channel may be scaled. `factor`
    is the Hessian's, where it was needed before. A CPU takes products that need no more in `products`.
    """

    weight: Tensor
    hessian: Tensor
    bits: int
    group_size: int
    sym: bool
    dtype: torch.dtype
    damp_percent: float
    share: int = 0
    width: int = 0
    factor: Factor | None = None
    products: torch.dtype = torch.float32

    @property
    def grid(self) -> dict:
        return {"bits": self.bits, "group_size": self.group_size, "sym": self.sym, "dtype": self.dtype}


@dataclass(frozen=True)
class Solution:
    """The quantized weight · scale, the scale per input channel (in,) or None, and the damping that it took."""

    weight: QuantizedWeight
    scale: Tensor | None = None
    damp_percent: float | None = None

    def effective(self) -> Tensor:
        """(out, in) float32: what multiplies the unscaled input."""
        weight = self.weight.dequantize()
        return weight if self.scale is None else weight / self.scale


def solve_rtn(problem: Problem) -> Solution:
    return Solution(rtn(problem.weight, **problem.grid))


def solve_gptq(problem: Problem) -> Solution:
    return gptq_scaled(problem, None)


def solve_awq(problem: Problem) -> Solution:
    scale = find_scale(problem)
    weight, hessian = problem.weight, problem.hessian
    if scale is not None:
        weight, hessian = weight * scale, scaled(hessian, scale)
    found = each_share(lambda own: clipped(weight[own], hessian, **problem.grid), weight)
    return Solution(found, scale)


def solve_awq_gptq(problem: Problem) -> Solution:
    return gptq_scaled(problem, find_scale(problem))


def gptq_scaled(problem: Problem, scale: Tensor | None) -> Solution:
    weight, hessian, factor = problem.weight, problem.hessian, problem.factor
    if scale is not None:
        weight, hessian, factor = weight * scale, scaled(hessian, scale), None
    factor = factor or inverse_factor(hessian, problem.damp_percent)

    def solve(own: slice) -> QuantizedWeight:
        first, _ = gptq(weight[own], hessian, factor=factor, **problem.grid)
        return refine(weight[own], hessian, first, dtype=problem.dtype, products=problem.products)

    return Solution(each_share(solve, weight), scale, factor.damp_percent)


def find_scale(problem: Problem) -> Tensor | None:
    if not problem.share:
        return None
    given = {"share": problem.share, "width": problem.width, "products": problem.products, **problem.grid}
    return search_scale(problem.weight, problem.hessian, **given)


def scaled(hessian: Tensor, scale: Tensor) -> Tensor:
    """The Hessian of inputs divided by `scale`."""
    return hessian / scale / scale[:, None]


SCALING = ("awq", "awq+gptq")
METHODS: dict[str, Callable[[Problem], Solution]] = {
    "rtn": solve_rtn,
    "gptq": solve_gptq,
    "awq": solve_awq,
    "awq+gptq": solve_awq_gptq,
}
