"""Coordinate descent after GPTQ: every code, then every scale, moves to where it loses least output beside the others.

GPTQ settles a column before it knows what becomes of the later ones; going over all of them again lowers the error
further. Codes as in QuantEase (Behdin et al. 2023, https://arxiv.org/abs/2309.01885); the scale of a group
follows as soon as its codes have moved, by least squares. Zeros stay, and so does the layout of the checkpoint.
"""

import torch
from torch import Tensor

from compress.core import kernels
from compress.core.grid import QuantizedWeight
from compress.core.kernels import SMALLEST_SCALE, TINY

SWEEPS = 3


def refine(
    weight: Tensor,
    hessian: Tensor,
    quantized: QuantizedWeight,
    *,
    dtype: torch.dtype,
    matmul_dtype: torch.dtype = torch.float32,
    sweeps: int = SWEEPS,
) -> QuantizedWeight:
    """`quantized` with less output error tr(E H Eᵀ), E (out, in) what it lacks of `weight`, H (in, in).

    Scales are rounded to `dtype` before they are compared. H E is computed in `matmul_dtype`: what
    bfloat16 rounds off is far less than the step between two codes.
    """
    move = kernels.move_group if hessian.device.type == "cpu" else move_group
    parts = (quantized.codes, quantized.scales, quantized.zeros)
    codes, scales, zeros = (part.T.clone(memory_format=torch.contiguous_format) for part in parts)
    size, max_code = quantized.group_size, 2**quantized.bits - 1
    groups = [(group, slice(group * size, (group + 1) * size)) for group in range(len(scales))]
    error = torch.empty_like(codes, dtype=torch.float32)
    for group, own in groups:
        torch.mul(codes[own] - zeros[group], scales[group], out=error[own]).sub_(weight[:, own].T)
    energy = hessian.diagonal().clamp(min=TINY)
    rough = error.to(matmul_dtype)
    for group, own in groups * sweeps:
        gradient = (hessian[own].to(matmul_dtype) @ rough).float()
        given = (gradient, hessian[own, own], energy[own], zeros[group], max_code, dtype)
        move(codes[own], error[own], scales[group], *given)
        rough[own] = error[own]
    return QuantizedWeight(codes.T.contiguous(), scales.T.contiguous(), quantized.zeros, quantized.bits, quantized.sym)


def move_group(
    codes: Tensor,
    error: Tensor,
    scales: Tensor,
    gradient: Tensor,
    hessian: Tensor,
    energy: Tensor,
    zeros: Tensor,
    max_code: int,
    dtype: torch.dtype,
) -> None:
    """Move a group's codes and then its scales, in place with the error they make; a CPU has `kernels.move_group`.

    codes uint8, error and its `gradient` H E (columns, out); scales and zeros (out,); hessian (columns, columns), its
    diagonal as `energy` above zero.
    """
    moved, slope, curvature = move_codes(codes, gradient, hessian, energy, scales, zeros, max_code)
    new = moved_scales(scales, slope, curvature, dtype)
    error += moved * new - (codes - zeros) * scales
    codes.copy_(moved + zeros)
    scales.copy_(new)


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


def moved_scales(scales: Tensor, slope: Tensor, curvature: Tensor, dtype: torch.dtype) -> Tensor:
    """The scale per output (out,) that loses least by slope and half curvature; the old one where that is better, or
    where the new one is too small to be stored or has another sign."""
    found = (scales - slope / curvature.clamp(min=TINY)).to(dtype).float()
    change = found - scales
    better = change * (2 * slope + change * curvature) < 0
    return torch.where(better & (found * scales.sign() >= SMALLEST_SCALE), found, scales)
