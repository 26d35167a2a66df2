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
        corner, lowest, highest = hessian[own, own], -zeros[group], max_code - zeros[group]
        gradient = hessian[own] @ error
        offsets = move_offsets(codes[own] - zeros[group], gradient, corner, scales[group], lowest, highest)
        scales[group] = moved_scales(offsets, gradient, corner, scales[group], dtype)
        codes[own] = (offsets + zeros[group]).to(torch.uint8)
        write_error(error[own], offsets, scales[group], weight[:, own])
    return QuantizedWeight(codes.T.contiguous(), scales.T.contiguous(), quantized.zeros, quantized.bits, quantized.sym)


def write_error(error: Tensor, offsets: Tensor, scales: Tensor, weight: Tensor) -> None:
    """What a group's weights (out, columns) are off by, into error (columns, out), as offsets are; scales (out,)."""
    torch.mul(offsets, scales, out=error).sub_(weight.T)


def move_offsets(
    offsets: Tensor, gradient: Tensor, hessian: Tensor, scales: Tensor, lowest: Tensor, highest: Tensor
) -> Tensor:
    """A group's codes less their zeros (columns, out), moved one column after the other to the best of their grid.

    `gradient` (columns, out) is H E of these columns, in place made that of the moved ones; hessian (columns, columns);
    the rest (out,). In steps of the scales, a column costs five operations: this is where a sweep spends its time.
    """
    steps, moved, change = gradient / scales, torch.empty_like(offsets), torch.empty_like(offsets)
    for i, energy in enumerate(hessian.diagonal().clamp(min=TINY).tolist()):
        torch.add(offsets[i], steps[i], alpha=-1 / energy, out=moved[i]).round_().clamp_(lowest, highest)
        torch.sub(moved[i], offsets[i], out=change[i])
        steps[i + 1 :].addr_(hessian[i, i + 1 :], change[i])
    gradient.addmm_(hessian, change.mul_(scales))
    return moved


def moved_scales(offsets: Tensor, gradient: Tensor, hessian: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """The scale per output (out,) that loses least with these offsets (columns, out); the old one where that is better,
    or where the new one is too small to be stored or has another sign."""
    slope, curvature = (gradient * offsets).sum(0), (hessian @ offsets).mul_(offsets).sum(0)
    found = (scales - slope / curvature.clamp(min=TINY)).to(dtype).float()
    change = found - scales
    better = change * (2 * slope + change * curvature) < 0
    return torch.where(better & (found * scales.sign() >= SMALLEST_SCALE), found, scales)
