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
from compress.quantize.gptq import Factor
from compress.quantize.lockstep import Seen

ROWS = 256  # of a weight at a time: 18944 inputs leave no room for more beside their Hessian and its factor


class Mismatch:
    """M of one stage's weight (out, in), summed as batches come.

    `adds`: aims are states of the residual stream after the output, (..., out), which may have a `bias` (out,). Else
    they are the 16-bit model's inputs, (..., in): a weight with few outputs meets every token, one with many the mean.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        adds: bool = False,
        products: torch.dtype = torch.float32,
    ):
        out_features, in_features = weight.shape
        rows = out_features if adds else mismatch_rows(out_features, in_features)
        self.adds, self.wide = adds, not adds and rows == in_features
        self._weight = weight if self.wide else weight.to(products)
        self._bias = None if bias is None else bias.to(products)
        self._mean = Cross(rows, in_features, products)

    @property
    def tokens(self) -> int:
        return self._mean.tokens

    def update(self, seen: Seen, aim: Tensor) -> None:
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
        """M, (out, in) float32: nothing can be added afterwards."""
        mean, weight = self._mean.take(), self._weight
        self._weight = weight.new_zeros(0, 0)
        return weight @ mean if self.wide else mean


def mismatch_rows(out_features: int, in_features: int) -> int:
    """How many rows of in_features are summed: one per output where that halves them, else one per input."""
    return out_features if 2 * out_features < in_features else in_features


def retarget(weight: Tensor, factor: Factor, moved: Tensor, strength: float) -> Tensor:
    """W + strength · M H⁻¹, (out, in) float32, from the weight W (out, in), the factor of H (in, in), and M (out, in),
    `moved`, which is used up."""
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
