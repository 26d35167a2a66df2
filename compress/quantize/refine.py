"""Coordinate descent after GPTQ: every code, then every scale, moves to where it loses least output beside the others.

GPTQ settles a column before it knows what becomes of the later ones; going over all of them again lowers the error
further. Codes as in QuantEase (Behdin et al. 2023, https://arxiv.org/abs/2309.01885); the scale of a group
follows as soon as its codes have moved, by least squares. Zeros stay, and so does the layout of the checkpoint.
"""

import torch
from torch import Tensor

from compress.quantize import kernels
from compress.quantize.grid import SMALLEST_SCALE, QuantizedWeight

SWEEPS = 3
TINY = 1e-30  # an input that never fires has no energy and no gradient: nothing moves


def refine(
    weight: Tensor, hessian: Tensor, quantized: QuantizedWeight, *, dtype: torch.dtype, sweeps: int = SWEEPS
) -> QuantizedWeight:
    """`quantized` with less output error tr(E H Eᵀ), E (out, in) what it lacks of `weight`, H (in, in).

    Scales are rounded to `dtype`, as the disk will hold them, before they are judged.
    """
    on_cpu = hessian.device.type == "cpu"
    move, put = (kernels.move_codes, kernels.settle) if on_cpu else (move_codes, settle)
    codes, scales, zeros = (part.T.contiguous() for part in (quantized.codes, quantized.scales, quantized.zeros))
    size, max_code = quantized.group_size, 2**quantized.bits - 1
    groups = [(group, slice(group * size, (group + 1) * size)) for group in range(len(scales))]
    error = torch.empty_like(codes, dtype=torch.float32)
    for group, own in groups:
        torch.mul(codes[own] - zeros[group], scales[group], out=error[own]).sub_(weight[:, own].T)
    energy = hessian.diagonal().clamp(min=TINY)
    for group, own in groups * sweeps:
        old, zero = scales[group], zeros[group]
        moved, slope, curvature = move(
            codes[own], hessian[own] @ error, hessian[own, own], energy[own], old, zero, max_code
        )
        new = moved_scales(old, slope, curvature, dtype)
        put(error[own], codes[own], moved, old, new, zero)
        scales[group] = new
    return QuantizedWeight(codes.T.contiguous(), scales.T.contiguous(), quantized.zeros, quantized.bits, quantized.sym)


def move_codes(
    codes: Tensor, gradient: Tensor, hessian: Tensor, energy: Tensor, scales: Tensor, zeros: Tensor, max_code: int
) -> tuple[Tensor, Tensor, Tensor]:
    """A group's codes less their zeros (columns, out), moved one column after the other to the best of their grid; then
    the slope and half the curvature (out,) of the loss in the scales, where they have moved to.

    `gradient` (columns, out) is H E of the codes (columns, out); hessian (columns, columns), its diagonal as `energy`
    above zero; scales and zeros (out,). In steps of the scales, a column costs five operations.
    """
    offsets, lowest, highest = codes - zeros, -zeros, max_code - zeros
    steps, moved, change = gradient / scales, torch.empty_like(gradient), torch.empty_like(gradient)
    for i, inverse in enumerate(energy.reciprocal().tolist()):
        torch.add(offsets[i], steps[i], alpha=-inverse, out=moved[i]).round_().clamp_(lowest, highest)
        torch.sub(moved[i], offsets[i], out=change[i])
        steps[i + 1 :].addr_(hessian[i, i + 1 :], change[i])
    product = hessian @ moved
    slope = (gradient * moved).sum(0) + scales * (product * change).sum(0)
    return moved, slope, product.mul_(moved).sum(0)


def settle(error: Tensor, codes: Tensor, moved: Tensor, old: Tensor, new: Tensor, zeros: Tensor) -> None:
    """Write into a group's error and codes (columns, out) what has `moved` with the scales from `old` to `new`."""
    error += moved * new - (codes - zeros) * old
    codes.copy_(moved + zeros)


def moved_scales(scales: Tensor, slope: Tensor, curvature: Tensor, dtype: torch.dtype) -> Tensor:
    """The scale per output (out,) that loses least by slope and half curvature; the old one where that is better, or
    where the new one is too small to be stored or has another sign."""
    found = (scales - slope / curvature.clamp(min=TINY)).to(dtype).float()
    change = found - scales
    better = change * (2 * slope + change * curvature) < 0
    return torch.where(better & (found * scales.sign() >= SMALLEST_SCALE), found, scales)
