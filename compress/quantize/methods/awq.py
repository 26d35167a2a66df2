"""AWQ: scale input channels up before rounding where activations are large, and the feeder down by the same.

Lin et al. 2023, https://arxiv.org/abs/2306.00978. The paper runs the block for every candidate scale; here the output
error of a candidate is read off the Hessian, tr(ΔW H ΔWᵀ), so the search does not grow with the tokens.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from calibration.statistics import strips
from compress.core.grid import QuantizedWeight, search_grid
from compress.quantize.methods.rtn import on_grid, rtn

RATIOS = tuple(step / 20 for step in range(20))
STEPS = (4, 2, 1)  # between the ratios that are tried
SEARCH_ROWS = 512  # of the outputs, evenly spread: they tell one ratio from another as well as all do


def output_error(difference: Tensor, hessian: Tensor, products: torch.dtype = torch.float32) -> float:
    """tr(ΔW H ΔWᵀ): mean squared output error per token, summed over outputs. (out, in), (in, in) -> float.

    The Hessian is symmetric: what is right of the diagonal counts twice, and most of what is left of it is not read.
    ΔW H is taken in `products`; in bfloat16 the sum is off by 1e-4 of itself at most.
    """
    rounded = difference.to(products)
    total = torch.zeros((), device=difference.device)
    for own in strips(len(hessian)):
        product = (rounded[:, own] @ hessian[own, own.start :].to(products)).float()
        product.mul_(difference[:, own.start :])
        total += 2 * product.sum() - product[:, : own.stop - own.start].sum()
    return total.item()


def search_scale(
    weight: Tensor,
    hessian: Tensor,
    *,
    bits: int,
    group_size: int,
    sym: bool,
    dtype: torch.dtype,
    share: int = 1,
    width: int = 0,
    products: torch.dtype = torch.float32,
) -> Tensor:
    """One scale per input channel, (in,) float32: the power of the activations' size that loses least after rounding.

    Ratio 0 (all ones) is among the candidates and wins ties. Of the 20 ratios 7 to 9 are tried, on about SEARCH_ROWS
    of the outputs. With `share` > 1, channels come as heads of `width`, and `share` neighbouring heads must have the
    same scales (their feeder is one value head).
    """
    weight = weight[:: max(1, len(weight) // SEARCH_ROWS)]
    energy = shared_mean(hessian.diagonal(), share, width).clamp(min=1e-12)
    size = energy.sqrt()

    def error(index: int) -> float:
        scale = normalised(size ** RATIOS[index])
        rounded = rtn(weight * scale, bits=bits, group_size=group_size, sym=sym, dtype=dtype).dequantize()
        return output_error(rounded / scale - weight, hessian, products)

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


def shared_mean(energy: Tensor, share: int, width: int) -> Tensor:
    """(in,) -> (in,): the mean over the heads that must share; the input itself when nothing is shared."""
    if share == 1:
        return energy
    heads = energy.view(-1, share, width)
    return heads.mean(1, keepdim=True).expand_as(heads).reshape(-1)


def clipped(
    weight: Tensor, hessian: Tensor, *, bits: int, group_size: int, sym: bool, dtype: torch.dtype
) -> QuantizedWeight:
    """`weight` (out, in) rounded on grids whose range was shrunk where that loses less output."""
    scales, zeros = search_grid(weight, hessian.diagonal(), bits=bits, group_size=group_size, sym=sym, dtype=dtype)
    return on_grid(weight, scales, zeros, bits=bits, sym=sym)
