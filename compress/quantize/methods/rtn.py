"""RTN, round to nearest. It needs no data. Every other method must have a lower error.

code = clamp(round(weight / scale + zero), 0, 2**bits - 1)
"""

import torch
from torch import Tensor

from compress.core.grid import QuantizedWeight, Scheme, min_max, quantize, split_groups


def rtn(weight: Tensor, scheme: Scheme) -> QuantizedWeight:
    """Round each weight (out, in) to the nearest point of its group's min-max grid."""
    scales, zeros = min_max(split_groups(weight.float(), scheme.group_size), scheme)
    return round_to_grid(weight, scales, zeros, scheme)


def round_to_grid(weight: Tensor, scales: Tensor, zeros: Tensor, scheme: Scheme) -> QuantizedWeight:
    """Round each weight (out, in) to the nearest point of the grid that `scales` and `zeros` (out, groups) define."""
    grouped = split_groups(weight.float(), scheme.group_size)
    codes = quantize(grouped, scales[..., None], zeros[..., None], scheme.bits).to(torch.uint8).flatten(1)
    return QuantizedWeight(codes, scales, zeros, bits=scheme.bits, sym=scheme.sym)
