"""Mismatch correction: a linear aims at what the 16-bit model's inputs would have made of it, not at its own weight.

    minimise over W*  mean over tokens of ‖W x₁₆ − W* x‖²,   so  W* = W + W M H⁻¹,  M = mean of (x₁₆ − x) xᵀ

x are the inputs that quantized predecessors make, x₁₆ those of the 16-bit model. W* makes up for what went wrong
before, and is then quantized in place of W. Qronos (Zhang et al. 2025, https://arxiv.org/abs/2505.11695) begins with
this target; here only a `strength` of the way is gone: M is measured on few tokens and fits them too well. H is shrunk.
"""

import torch
from torch import Tensor

from calibration.statistics import strips
from compress.quantize.gptq import Factor

ROWS = 256  # of a weight at a time: 18944 inputs leave no room for more beside their Hessian and its factor


def retarget(weight: Tensor, factor: Factor, moved: Tensor, strength: float) -> Tensor:
    """W + strength · W M H⁻¹, (out, in) float32, from weight W (out, in), the factor of H (in, in) and moved W M
    (out, in), which is used up."""
    back = torch.argsort(factor.order)
    for own, change in zip(weight.split(ROWS), moved.split(ROWS), strict=True):
        solved = times_inverse(change[:, factor.order], factor.upper)
        change.copy_(own + strength * solved[:, back])
    return moved


def times_inverse(rows: Tensor, upper: Tensor) -> Tensor:
    """rows (n, in) times Uᵀ U, of an upper triangular U (in, in), in strips that leave out most of its zeros."""
    half, whole = torch.empty_like(rows), torch.empty_like(rows)
    for own in strips(len(upper)):
        half[:, own] = rows[:, own.start :] @ upper[own, own.start :].T
    for own in strips(len(upper)):
        whole[:, own] = half[:, : own.stop] @ upper[: own.stop, own]
    return whole
