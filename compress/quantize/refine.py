"""Coordinate descent after GPTQ: every code, then every scale, moves to where it loses least output beside the others.

GPTQ settles a column before it knows what becomes of the later ones; going over all of them again lowers the error
further. Codes as in QuantEase (Behdin et al. 2023, https://arxiv.org/abs/2309.01885); the scale of a group
follows as soon as its codes have moved, by least squares. Zeros stay, and so does the layout of the checkpoint.
"""

import torch
from torch import Tensor

from compress.quantize.grid import SMALLEST_SCALE, QuantizedWeight

SWEEPS = 3
TINY = 1e-30  # an input that never fires has no energy and no gradient: nothing moves


def refine(
    weight: Tensor, hessian: Tensor, quantized: QuantizedWeight, *, dtype: torch.dtype, sweeps: int = SWEEPS
) -> QuantizedWeight:
    """`quantized` with less output error tr(E H Eᵀ), E (out, in) what it lacks of `weight`, H (in, in).

    Scales are rounded to `dtype`, as the disk will hold them, before they are judged.
    """
    codes, scales, zeros = (part.T.contiguous() for part in (quantized.codes, quantized.scales, quantized.zeros))
    size, max_code = quantized.group_size, 2**quantized.bits - 1
    groups = [(group, slice(group * size, (group + 1) * size)) for group in range(len(scales))]
    error = torch.empty_like(codes, dtype=torch.float32)
    for group, own in groups:
        write_error(error[own], codes[own] - zeros[group], scales[group], weight[:, own])
    for group, own in groups * sweeps:
        offsets, gradient = codes[own] - zeros[group], hessian[own] @ error
        move_offsets(offsets, gradient, hessian[own, own], scales[group], -zeros[group], max_code - zeros[group])
        scales[group] = moved_scales(offsets, gradient, hessian[own, own], scales[group], dtype)
        codes[own] = (offsets + zeros[group]).to(torch.uint8)
        write_error(error[own], offsets, scales[group], weight[:, own])
    return QuantizedWeight(codes.T.contiguous(), scales.T.contiguous(), quantized.zeros, quantized.bits, quantized.sym)


def write_error(error: Tensor, offsets: Tensor, scales: Tensor, weight: Tensor) -> None:
    """What a group's weights (out, columns) are off by, into error (columns, out), as offsets are; scales (out,)."""
    torch.mul(offsets, scales, out=error).sub_(weight.T)


def move_offsets(
    offsets: Tensor, gradient: Tensor, hessian: Tensor, scales: Tensor, lowest: Tensor, highest: Tensor
) -> None:
    """One after the other, a group's codes less their zeros (columns, out) to the best of their grid, in place.

    `gradient` (columns, out) is H E of these columns and keeps step; hessian (columns, columns); the rest (out,).
    """
    steps = scales.reciprocal()
    for i, energy in enumerate(hessian.diagonal().clamp(min=TINY).tolist()):
        best = torch.addcmul(offsets[i], gradient[i], steps, value=-1 / energy).round_().clamp_(lowest, highest)
        gradient.addr_(hessian[i], (best - offsets[i]).mul_(scales))
        offsets[i] = best


def moved_scales(offsets: Tensor, gradient: Tensor, hessian: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """The scale per output (out,) that loses least with these offsets (columns, out); the old one where that is better,
    or where the new one is too small to be stored or has another sign."""
    slope, curvature = (gradient * offsets).sum(0), (hessian @ offsets).mul_(offsets).sum(0)
    found = (scales - slope / curvature.clamp(min=TINY)).to(dtype).float()
    change = found - scales
    better = change * (2 * slope + change * curvature) < 0
    return torch.where(better & (found * scales.sign() >= SMALLEST_SCALE), found, scales)
