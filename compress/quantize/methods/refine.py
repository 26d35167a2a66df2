"""Coordinate descent after GPTQ: move every code, then every scale, to the value with the least output error.

    codeᵢ -= round(gradientᵢ / (scale Hᵢᵢ)),  gradient = E H,  E = rounded - weight

GPTQ rounds each column before the errors of later columns exist, so more passes over all columns lower the error. Codes
move as in QuantEase (Behdin et al. 2023, https://arxiv.org/abs/2309.01885). Then the scale of each group is fitted to
its new codes by least squares. Zeros and the layout of the checkpoint do not change.
"""

import torch
from torch import Tensor

from compress.core import kernels
from compress.core.gpu_kernels import triton_kernels
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
    """A copy of `quantized` with a lower output error tr(E H Eᵀ) than before, where H is `hessian` (in, in).

    E is the difference from `weight` (out, in). Candidate scales are rounded to `dtype`, the dtype on disk, before they
    are compared. The gradient is computed in `matmul_dtype`; bfloat16 rounds it by far less than the step between two
    codes. Inside this function, tensors are transposed to (in, out), so that the gradient is H E.
    """
    compiled = kernels if hessian.device.type == "cpu" else triton_kernels()
    move = compiled.move_group if compiled else move_group
    parts = (quantized.codes, quantized.scales, quantized.zeros)
    codes, scales, zeros = (part.T.clone(memory_format=torch.contiguous_format) for part in parts)
    size, max_code = quantized.group_size, 2**quantized.bits - 1
    groups = [(index, slice(index * size, (index + 1) * size)) for index in range(len(scales))]
    error = torch.empty_like(codes, dtype=torch.float32)
    for index, group in groups:
        torch.mul(codes[group] - zeros[index], scales[index], out=error[group]).sub_(weight[:, group].T)
    energy = hessian.diagonal().clamp(min=TINY)
    rough_error = error.to(matmul_dtype)
    for index, group in groups * sweeps:
        gradient = (hessian[group].to(matmul_dtype) @ rough_error).float()
        fixed = (gradient, hessian[group, group], energy[group], zeros[index], max_code, dtype)
        move(codes[group], error[group], scales[index], *fixed)
        rough_error[group] = error[group]
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
    """Move a group's codes and then its scales, and update `error`, all in place.

    `codes` uint8, `error` and `gradient` (H E) are (columns, out). `scales` and `zeros` are (out,). `hessian` is
    (columns, columns), and `energy` is its diagonal, raised above zero. Where they can run, `kernels.move_group` (on a
    CPU) or `triton_kernels.move_group` (on a GPU) is used instead.
    """
    moved, slope, curvature = move_codes(codes, gradient, hessian, energy, scales, zeros, max_code)
    new_scales = move_scales(scales, slope, curvature, dtype)
    error += moved * new_scales - (codes - zeros) * scales
    codes.copy_(moved + zeros)
    scales.copy_(new_scales)


def move_codes(
    codes: Tensor, gradient: Tensor, hessian: Tensor, energy: Tensor, scales: Tensor, zeros: Tensor, max_code: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The new codes minus zeros (columns, out), and how the loss depends on the scales: slope and half the curvature.

    Slope and half the curvature are (out,), for the new codes at the old scales. Columns move one after the other, each
    to its best code. All inputs have the shapes of `move_group`. A column takes five operations, because the gradient
    is divided by the scales in advance.
    """
    offsets, lowest, highest = codes - zeros, -zeros, max_code - zeros
    steps, moved, change = gradient / scales, torch.empty_like(gradient), torch.empty_like(gradient)
    for i, inverse in enumerate(energy.reciprocal()):
        torch.addcmul(offsets[i], steps[i], inverse, value=-1, out=moved[i]).round_().clamp_(lowest, highest)
        torch.sub(moved[i], offsets[i], out=change[i])
        steps[i + 1 :].addr_(hessian[i, i + 1 :], change[i])
    product = hessian @ moved
    slope = (gradient * moved).sum(0) + scales * (product * change).sum(0)
    return moved, slope, product.mul_(moved).sum(0)


def move_scales(scales: Tensor, slope: Tensor, curvature: Tensor, dtype: torch.dtype) -> Tensor:
    """The scale of each output (out,) with the least loss, from the slope and half the curvature of the loss.

    The old scale is kept if the new one has a higher loss or the opposite sign, or is too small to store in `dtype`.
    """
    best = (scales - slope / curvature.clamp(min=TINY)).to(dtype).float()
    change = best - scales
    better = change * (2 * slope + change * curvature) < 0
    return torch.where(better & (best * scales.sign() >= SMALLEST_SCALE), best, scales)
