"""AWQ: scale input channels up before rounding where activations are large, and the feeder down by the same.

Lin et al. 2023, https://arxiv.org/abs/2306.00978. The paper runs the block for every candidate scale; here the output
error of a candidate is read off the Hessian, tr(ΔW H ΔWᵀ), so the search does not grow with the tokens.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from calibration.statistics import strips
from compress.core.grid import QuantizedWeight, Scheme, find_grid
from compress.quantize.methods.rtn import round_to_grid, rtn

RATIOS = tuple(step / 20 for step in range(20))
STEPS = (4, 2, 1)  # between the ratios that are tried
SEARCH_ROWS = 512  # of the outputs, evenly spread: they tell one ratio from another as well as all do


def output_error(difference: Tensor, hessian: Tensor, matmul_dtype: torch.dtype = torch.float32) -> float:
    """tr(ΔW H ΔWᵀ): mean squared output error per token, summed over outputs. (out, in), (in, in) -> float.

    The Hessian is symmetric: what is right of the diagonal counts twice, and most of what is left of it is not read.
    ΔW H is taken in `matmul_dtype`; in bfloat16 the sum is off by 1e-4 of itself at most.
    """
    rounded = difference.to(matmul_dtype)
    total = torch.zeros((), device=difference.device)
    for own in strips(len(hessian)):
        product = (rounded[:, own] @ hessian[own, own.start :].to(matmul_dtype)).float()
        product.mul_(difference[:, own.start :])
        total += 2 * product.sum() - product[:, : own.stop - own.start].sum()
    return total.item()


def search_scale(
    weight: Tensor,
    hessian: Tensor,
    scheme: Scheme,
    *,
    query_heads_per_kv_head: int = 1,
    head_dim: int = 0,
    matmul_dtype: torch.dtype = torch.float32,
) -> Tensor:
    """One scale per input channel, (in,) float32: the power of the activations' size that loses least after rounding.

    Ratio 0 (all ones) is among the candidates and wins ties. Of the 20 ratios 7 to 9 are tried, on about SEARCH_ROWS
    of the outputs. Each `query_heads_per_kv_head` neighbouring heads of `head_dim` channels get the same scales: one
    value head feeds them all.
    """
    weight = weight[:: max(1, len(weight) // SEARCH_ROWS)]
    energy = mean_over_shared(hessian.diagonal(), query_heads_per_kv_head, head_dim).clamp(min=1e-12)
    size = energy.sqrt()

    def error(index: int) -> float:
        scale = normalised(size ** RATIOS[index])
        rounded = rtn(weight * scale, scheme).dequantize()
        return output_error(rounded / scale - weight, hessian, matmul_dtype)

    return normalised(size ** RATIOS[coarse_to_fine(error, len(RATIOS))])


def coarse_to_fine(error: Callable[[int], float], count: int) -> int:
    """The index below `count` of the least `error`: every fourth is tried, then the neighbours of the best so far.

    The first of equals wins. A curve with several valleys may hide the deepest; the experiment log has the cost.
    """
    errors: dict[int, float] = {}
    best, near = 0, list(range(0, count, STEPS[0]))
    for step in (*STEPS[1:], 0):
        errors |= {index: error(index) for index in near if 0 <= index < count and index not in errors}
        best = min(errors, key=lambda index: (errors[index], index))
        near = [best - step, best + step]
    return best


def normalised(scale: Tensor) -> Tensor:
    """Centred on 1 in the logarithm, and within what a float16 norm weight can carry."""
    return (scale / (scale.max() * scale.min()).sqrt()).clamp(1e-2, 1e2)


def mean_over_shared(energy: Tensor, query_heads_per_kv_head: int, head_dim: int) -> Tensor:
    """(in,) -> (in,): the mean over the query heads that one value head feeds."""
    if query_heads_per_kv_head == 1:
        return energy
    heads = energy.view(-1, query_heads_per_kv_head, head_dim)
    return heads.mean(1, keepdim=True).expand_as(heads).reshape(-1)


def clip(weight: Tensor, hessian: Tensor, scheme: Scheme) -> QuantizedWeight:
    """Round `weight` (out, in) to grids whose range is shrunk where that lowers the output error."""
    scales, zeros = find_grid(weight, scheme, hessian.diagonal())
    return round_to_grid(weight, scales, zeros, scheme)
