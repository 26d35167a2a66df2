"""Round a matrix to Q6_K, the ggml type of 6.56 bits per weight that llama.cpp itself uses for embeddings and heads.

A block has 256 weights: 16 groups of 16. A weight is (code - 32) · scale · d, with codes of 6 bits, one int8 scale per
group and one float16 d per block. The gguf package reads this type and does not write it. For each group, several
scales are tried, and the one with the least squared error is kept.
"""

import torch
from torch import Tensor

from compress.core.pack import pack_ggml_six_bits

SUPER_BLOCK, GROUP = 256, 16
LOWEST, HIGHEST = -32, 31  # codes, less 32
TRIED = (-32.0, -33.0, -32.5, -31.5, -31.0, -30.5, -30.0)  # codes of a group's largest weight


def quantize_q6_k(values: Tensor) -> Tensor:
    """A float32 matrix (rows, columns) as bytes (rows, columns / 256 · 210) uint8."""
    groups = values.unflatten(1, (-1, SUPER_BLOCK // GROUP, GROUP))
    scales = group_scales(groups)
    steps = (extreme(scales) / -128).half()
    factors = rounded(scales / nonzero(steps.float())[..., None], -128, 127)
    codes = rounded(groups / nonzero(factors * steps.float()[..., None])[..., None], LOWEST, HIGHEST)
    packed = pack_ggml_six_bits((codes - LOWEST).to(torch.uint8).flatten(1))
    parts = [packed, factors.to(torch.int8).view(torch.uint8), steps[..., None].view(torch.uint8)]
    return torch.cat(parts, dim=-1).flatten(1).contiguous()


def group_scales(groups: Tensor) -> Tensor:
    """The scale of each group (…, GROUP) with the least squared error among those of TRIED: (…)."""
    largest = extreme(groups)
    best, least = torch.zeros_like(largest), torch.full_like(largest, torch.inf)
    for code in TRIED:
        scales = largest / code
        codes = rounded(groups / nonzero(scales)[..., None], LOWEST, HIGHEST)
        fitted = (groups * codes).sum(-1) / nonzero(codes.square().sum(-1))
        error = (groups - codes * fitted[..., None]).square().sum(-1)
        best = torch.where(error < least, fitted, best)
        least = torch.minimum(error, least)
    return best


def extreme(values: Tensor) -> Tensor:
    """The value of largest magnitude along the last dimension, with its sign."""
    return values.gather(-1, values.abs().argmax(-1, keepdim=True))[..., 0]


def nonzero(values: Tensor) -> Tensor:
    """The values, with 1 in place of 0: a divisor of numbers that are 0 too."""
    return torch.where(values == 0, 1.0, values)


def rounded(values: Tensor, low: int, high: int) -> Tensor:
    return values.round().clamp(low, high)
