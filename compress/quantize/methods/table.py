"""The table of methods. A method turns the weight and Hessian of one stage into codes.

A new method is one new file and one row in METHODS. gptq and awq+gptq always end with the sweeps of refine.py.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

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
    """One stage as a method sees it: the stacked weight (out, in) of its linears, and the hessian (in, in) of inputs.

    If `scalable`, a method may scale input channels. Neighbouring heads of `head_dim` channels then share their scales
    in groups of `query_heads_per_kv_head`. `factor` is the Hessian's factor; if it is None, the method computes it. On
    a CPU, matrix products that do not need float32 are computed in `matmul_dtype`.
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
    """A method's result: the quantized product weight · scale, the scale, and the damping that GPTQ needed.

    `scale` (in,) has one number per input channel. It is None if no channel was scaled.
    """

    weight: QuantizedWeight
    scale: Tensor | None = None
    damp_percent: float | None = None

    def to(self, device: torch.device | str) -> "Solution":
        """The solution with all tensors on a device."""
        return replace(self, weight=self.weight.to(device), scale=None if self.scale is None else self.scale.to(device))

    def effective(self) -> Tensor:
        """The weight (out, in) float32 that multiplies the unscaled input."""
        weight = self.weight.dequantize()
        return weight if self.scale is None else weight / self.scale


def solve_rtn(problem: Problem) -> Solution:
    return Solution(rtn(problem.weight, problem.scheme))


def solve_gptq(problem: Problem) -> Solution:
    return gptq_scaled(problem, None)


def solve_awq(problem: Problem) -> Solution:
    scale = find_scale(problem)
    weight, hessian = scaled(problem, scale)
    return Solution(solve_in_parallel(lambda rows: clip(weight[rows], hessian, problem.scheme), weight), scale)


def solve_awq_gptq(problem: Problem) -> Solution:
    return gptq_scaled(problem, find_scale(problem))


def gptq_scaled(problem: Problem, scale: Tensor | None) -> Solution:
    """Quantize weight · scale with GPTQ, then `refine` it."""
    weight, hessian = scaled(problem, scale)
    factor = problem.factor if scale is None else None
    factor = factor or inverse_factor(hessian, problem.damp_percent)

    def solve(rows: slice) -> QuantizedWeight:
        quantized, _ = gptq(weight[rows], hessian, problem.scheme, factor=factor)
        return refine(
            weight[rows], hessian, quantized, dtype=problem.scheme.dtype.torch, matmul_dtype=problem.matmul_dtype
        )

    return Solution(solve_in_parallel(solve, weight), scale, factor.damp_percent)


def find_scale(problem: Problem) -> Tensor | None:
    """AWQ's scale for each input channel (in,). None if the problem is not scalable."""
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


def scaled(problem: Problem, scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """The weight times `scale`, and the Hessian of inputs divided by `scale`."""
    if scale is None:
        return problem.weight, problem.hessian
    return problem.weight * scale, problem.hessian / scale / scale[:, None]


SCALING = ("awq", "awq+gptq")
METHODS: dict[str, Callable[[Problem], Solution]] = {
    "rtn": solve_rtn,
    "gptq": solve_gptq,
    "awq": solve_awq,
    "awq+gptq": solve_awq_gptq,
}
