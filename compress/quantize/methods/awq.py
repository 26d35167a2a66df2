"""AWQ: before rounding, scale up the input channels with large activations; scale down the module that feeds them.

    scale = activation_size ** ratio,   the ratio with the least tr(ΔW H ΔWᵀ),   ΔW = round(W · scale) / scale − W

Lin et al. 2023, https://arxiv.org/abs/2306.00978. The paper runs the block for every candidate scale. Here the output
error is computed from the Hessian, so the cost of the search does not depend on the number of tokens.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from calibration.statistics import strips
from compress.core.grid import QuantizedWeight, Scheme, find_grid
from compress.quantize.methods.rtn import round_to_grid, rtn

RATIOS = tuple(step / 20 for step in range(20))
STEPS = (4, 2, 1)  # distances between tried ratios, coarse to fine
SEARCH_ROWS = 512  # outputs that the search uses, evenly spaced: they rank the ratios as well as all outputs do


def output_error(difference: Tensor, hessian: Tensor, matmul_dtype: torch.dtype = torch.float32) -> float:
    """The squared output error tr(ΔW H ΔWᵀ), a mean over tokens, for ΔW = `difference` (out, in) and H (in, in).

    H is symmetric, so numbers above its diagonal count twice, and most numbers below the diagonal are not read.
    ΔW H is computed in `matmul_dtype`. With bfloat16, the relative error of the sum is at most 1e-4.
    """
    rounded = difference.to(matmul_dtype)
    total = torch.zeros((), device=difference.device)
    for strip in strips(len(hessian)):
        product = (rounded[:, strip] @ hessian[strip, strip.start :].to(matmul_dtype)).float()
        product.mul_(difference[:, strip.start :])
        total += 2 * product.sum() - product[:, : strip.stop - strip.start].sum()
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
    """The scale of each input channel, (in,) float32: the power of the activation size with the least output error.

    The search tries 7 to 9 of the 20 RATIOS on about SEARCH_ROWS outputs. Ratio 0 means no scaling and wins a tie.
    Heads have `head_dim` channels. Neighbouring query heads share their scales in groups of `query_heads_per_kv_head`,
    because one value head feeds each group.
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
    """The index below `count` with the least `error`, from a search that narrows down.

    It tries every fourth index, then the neighbours of the best index at distance 2, then at distance 1. The lowest
    index wins a tie. If `error` has several local minima, the search may miss the global one.
    """
    errors: dict[int, float] = {}
    best, candidates = 0, list(range(0, count, STEPS[0]))
    for next_step in (*STEPS[1:], 0):
        errors |= {index: error(index) for index in candidates if 0 <= index < count and index not in errors}
        best = min(errors, key=lambda index: (errors[index], index))
        candidates = [best - next_step, best + next_step]
    return best


def normalised(scale: Tensor) -> Tensor:
    """The scale divided so that √(max · min) = 1, limited to a range that a norm weight in float16 can store."""
    return (scale / (scale.max() * scale.min()).sqrt()).clamp(1e-2, 1e2)


def mean_over_shared(energy: Tensor, query_heads_per_kv_head: int, head_dim: int) -> Tensor:
    """Replace each channel's energy by its mean over the query heads that share a value head: (in,) -> (in,)."""
    if query_heads_per_kv_head == 1:
        return energy
    heads = energy.view(-1, query_heads_per_kv_head, head_dim)
    return heads.mean(1, keepdim=True).expand_as(heads).reshape(-1)


def clip(weight: Tensor, hessian: Tensor, scheme: Scheme) -> QuantizedWeight:
    """Round `weight` (out, in) to grids. The range of a grid is shrunk if that lowers the output error."""
    scales, zeros = find_grid(weight, scheme, hessian.diagonal())
    return round_to_grid(weight, scales, zeros, scheme)
