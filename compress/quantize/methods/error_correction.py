"""Mismatch correction: a linear aims at what the 16-bit model makes there, not at its own weight.

    minimise over W*  mean over tokens of ‖y₁₆ − W* x‖²,   so  W* = W + M H⁻¹,  M = mean of (y₁₆ − W x) xᵀ

x are the inputs that quantized predecessors make, y₁₆ = W x₁₆ what the 16-bit model's inputs become. Where the output
is added to the residual stream r, the sum counts: y₁₆ = r₁₆ + W x₁₆ − r, so that r's own errors are made up for too.
W* is then quantized in place of W. Qronos (Zhang et al. 2025, https://arxiv.org/abs/2505.11695) begins with the first
target; here only a `strength` of the way is gone: M is measured on few tokens and fits them too well. H is shrunk.
"""

import torch
from torch import Tensor
from torch.nn.functional import linear

from calibration.statistics import Cross, strips
from compress.quantize.blocks.lockstep import StageInput
from compress.quantize.methods.gptq import Factor

NUMBERS = 2**23  # at a time: 18944 inputs leave little room beside their Hessian and its factor


class Mismatch:
    """M of one stage's weight (out, in), summed as batches come.

    `adds`: aims are states of the residual stream after the output, (..., out), which may have a `bias` (out,). Else
    they are the 16-bit model's inputs, (..., in): a weight with few outputs meets every token, one with many only the
    mean of (x₁₆ − x) xᵀ (in, in), which is then summed instead: the mismatch is `wide`.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        adds: bool = False,
        matmul_dtype: torch.dtype = torch.float32,
    ):
        out_features, in_features = weight.shape
        rows = out_features if adds else mismatch_rows(out_features, in_features)
        self.adds, self.wide = adds, not adds and rows == in_features
        self._weight = weight.new_zeros(0, 0) if self.wide else weight.to(matmul_dtype)
        self._bias = None if bias is None else bias.to(matmul_dtype)
        self._mean = Cross(rows, in_features, matmul_dtype)

    @property
    def tokens(self) -> int:
        return self._mean.tokens

    def update(self, seen: StageInput, aim: Tensor) -> None:
        """Add what a batch lacks. Raises ValueError on other widths."""
        aim = aim.to(seen.x.device)
        if self.adds:
            assert seen.residual is not None
            missing = aim - seen.residual - linear(seen.x.to(self._weight.dtype), self._weight, self._bias)
        elif self.wide:
            missing = aim - seen.x
        else:
            missing = linear((aim - seen.x).to(self._weight.dtype), self._weight)
        self._mean.update(missing, seen.x)

    def take(self) -> Tensor:
        """What was summed, float32: M (out, in), or (in, in) where `wide`. Nothing can be added afterwards."""
        self._weight = self._weight.new_zeros(0, 0)
        return self._mean.take()


def mismatch_rows(out_features: int, in_features: int) -> int:
    """How many rows of in_features are summed: one per output where that halves them, else one per input."""
    return out_features if 2 * out_features < in_features else in_features


def retarget(
    weight: Tensor,
    factor: Factor,
    moved: Tensor,
    strength: float,
    *,
    wide: bool = False,
    matmul_dtype: torch.dtype = torch.float32,
) -> Tensor:
    """W + strength · M H⁻¹ in the place of the weight W (out, in), from the factor of H (in, in) and `moved`: what a
    Mismatch has summed, `wide` or not, and what is used up. A wide one meets W in `matmul_dtype`."""
    back, rows = torch.argsort(factor.order), max(1, NUMBERS // weight.shape[1])
    for change in moved.split(rows):
        change.copy_(times_inverse(change[:, factor.order], factor.upper)[:, back])
    if not wide:
        return weight.add_(moved, alpha=strength)
    moved = moved.to(matmul_dtype)
    for own in weight.split(rows):
        own.add_(own.to(matmul_dtype) @ moved, alpha=strength)
    return weight


def times_inverse(rows: Tensor, upper: Tensor) -> Tensor:
    """rows (n, in) times Uᵀ U, of an upper triangular U (in, in), in strips that leave out most of its zeros."""
    half, whole = torch.empty_like(rows), torch.empty_like(rows)
    for own in strips(len(upper)):
        half[:, own] = rows[:, own.start :] @ upper[own, own.start :].T
    for own in strips(len(upper)):
        whole[:, own] = half[:, : own.stop] @ upper[: own.stop, own]
    return whole
