"""Round to nearest: the floor that every method must beat. Needs no data."""

import torch
from torch import Tensor

from compress.core.grid import QuantizedWeight, min_max, quantize, split_groups


def rtn(
    weight: Tensor, *, bits: int = 4, group_size: int, sym: bool, dtype: torch.dtype = torch.float16
) -> QuantizedWeight:
    """Each weight (out, in) to the nearest point of its group's min-max grid."""
    grouped = split_groups(weight.float(), group_size)
    scales, zeros = min_max(grouped, bits=bits, sym=sym, dtype=dtype)
    return on_grid(weight, scales, zeros, bits=bits, sym=sym)


def on_grid(weight: Tensor, scales: Tensor, zeros: Tensor, *, bits: int, sym: bool) -> QuantizedWeight:
    """Each weight (out, in) to the nearest point of a given grid: scales and zeros (out, groups)."""
    grouped = split_groups(weight.float(), weight.shape[1] // scales.shape[1])
    codes = quantize(grouped, scales[..., None], zeros[..., None], bits).to(torch.uint8).flatten(1)
    return QuantizedWeight(codes, scales, zeros, bits=bits, sym=sym)
