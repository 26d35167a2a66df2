"""Mismatch correction: a linear aims at what the 16-bit model's inputs would have made of it, not at its own weight.

    minimise over W*  mean over tokens of ‖W x₁₆ − W* x‖²,   so  W* = W + W M H⁻¹,  M = mean of (x₁₆ − x) xᵀ

x are the inputs that quantized predecessors make, x₁₆ those of the 16-bit model. W* makes up for what went wrong
before, and is then quantized in place of W. Qronos (Zhang et al. 2025, https://arxiv.org/abs/2505.11695) begins with
this target; here only a `strength` of the way is gone: M is measured on few tokens and fits them too well.
"""

from torch import Tensor

from compress.quantize.gptq import inverse_factor


def retarget(weight: Tensor, hessian: Tensor, moved: Tensor, *, strength: float, damp_percent: float) -> Tensor:
    """W + strength · W M H⁻¹, (out, in) float32, from weight W (out, in), hessian H (in, in) and moved W M (out, in).

    ValueError for a Hessian that no damping makes positive.
    """
    factor = inverse_factor(hessian, damp_percent)
    change = moved[:, factor.order] @ factor.upper.T @ factor.upper
    target = weight.clone()
    target[:, factor.order] += strength * change
    return target
