"""The methods as a table: from one stage's weights and Hessian to codes. A new method is one file and one row."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.core.grid import QuantizedWeight, Scheme
from compress.quantize.methods.awq import clip, search_scale
from compress.quantize.methods.gptq import Factor, gptq, inverse_factor
from compress.quantize.methods.parallel_rows import solve_in_parallel
from compress.quantize.methods.refine import refine
from compress.quantize.methods.rtn import rtn


@dataclass(frozen=True)
class Problem:
    """The weight (out, in) of linears with the same input, rows stacked, and the hessian (in, in) of that input.

    Where `scalable`, a method may scale input channels. Each `query_heads_per_kv_head` neighbouring heads of `head_dim`
    channels then get the same scales. `factor` is the Hessian's factor, if already computed. On a CPU, matrix products
    that need no float32 are computed in `matmul_dtype`.
    """

    weight: Tensor
    hessian: Tensor
    scheme: Scheme
    damp_percent: float
    scalable: bool = False
    query_heads_per_kv_head: int = 1
    head_dim: int = 0
    factor: Factor | None = None
    matmul_dtype: torch.dtype = torch.float32


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
    return Solution(rtn(problem.weight, problem.scheme))


def solve_gptq(problem: Problem) -> Solution:
    return gptq_scaled(problem, None)


def solve_awq(problem: Problem) -> Solution:
    scale = find_scale(problem)
    weight, hessian = problem.weight, problem.hessian
    if scale is not None:
        weight, hessian = weight * scale, scaled(hessian, scale)
    found = solve_in_parallel(lambda own: clip(weight[own], hessian, problem.scheme), weight)
    return Solution(found, scale)


def solve_awq_gptq(problem: Problem) -> Solution:
    return gptq_scaled(problem, find_scale(problem))


def gptq_scaled(problem: Problem, scale: Tensor | None) -> Solution:
    weight, hessian, factor = problem.weight, problem.hessian, problem.factor
    if scale is not None:
        weight, hessian, factor = weight * scale, scaled(hessian, scale), None
    factor = factor or inverse_factor(hessian, problem.damp_percent)

    def solve(own: slice) -> QuantizedWeight:
        first, _ = gptq(weight[own], hessian, problem.scheme, factor=factor)
        return refine(weight[own], hessian, first, dtype=problem.scheme.dtype, matmul_dtype=problem.matmul_dtype)

    return Solution(solve_in_parallel(solve, weight), scale, factor.damp_percent)


def find_scale(problem: Problem) -> Tensor | None:
    if not problem.scalable:
        return None
    return search_scale(
        problem.weight,
        problem.hessian,
        problem.scheme,
        query_heads_per_kv_head=problem.query_heads_per_kv_head,
        head_dim=problem.head_dim,
        matmul_dtype=problem.matmul_dtype,
    )


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
