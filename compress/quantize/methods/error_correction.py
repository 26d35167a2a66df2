"""Error correction: before rounding, move the weights towards the least-squares fit to the 16-bit outputs.

    minimise over W*  mean over tokens of ‖y₁₆ − W* x‖²,   so  W* = W + C H⁻¹,  C = mean of (y₁₆ − W x) xᵀ

x is the input that the quantized predecessors compute. y₁₆ = W x₁₆ is the output in the 16-bit model. Where the output
is added to the residual stream r, the fit is to the sum: y₁₆ = r₁₆ + W x₁₆ − r, which also corrects the errors in r.
Qronos (Zhang et al. 2025, https://arxiv.org/abs/2505.11695) starts from the first target. C comes from few tokens and
fits them too well, so only W + strength · C H⁻¹ is quantized, with a shrunk H.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from calibration.statistics import Cross, strips
from compress.quantize.methods.gptq import Factor

MAX_NUMBERS = 2**23  # per step: 18944 inputs leave little memory beside the Hessian and its factor


class StageInput(NamedTuple):
    """One micro-batch at a stage: the linears' input x (batch, seq, in).

    `residual` is the residual stream (batch, seq, hidden) to which the stage's output is added, where the family table
    names the module that reads it.
    """

    x: Tensor
    residual: Tensor | None = None


class ErrorCovariance:
    """C of one stage's weight (out, in), the mean of (output error) xᵀ, accumulated batch by batch.

    With `residual_outputs`, references are states of the residual stream after the stage, (..., out), bias included.
    Otherwise they are inputs of the stage in the 16-bit model, (..., in). A weight with few outputs then multiplies
    every token. A weight with many outputs multiplies only the mean of (x₁₆ − x) xᵀ, (in, in): `from_inputs` is True.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        residual_outputs: bool = False,
        matmul_dtype: torch.dtype = torch.float32,
    ):
        out_features, in_features = weight.shape
        rows = out_features if residual_outputs else covariance_rows(out_features, in_features)
        self.residual_outputs, self.from_inputs = residual_outputs, not residual_outputs and rows == in_features
        self._weight = weight.new_zeros(0, 0) if self.from_inputs else weight.to(matmul_dtype)
        self._bias = None if bias is None else bias.to(matmul_dtype)
        self._mean = Cross(rows, in_features, matmul_dtype)

    @property
    def tokens(self) -> int:
        return self._mean.tokens

    def update(self, batch: StageInput, reference: Tensor) -> None:
        """Add one batch and the 16-bit model's reference for it. ValueError for other widths."""
        reference = reference.to(batch.x.device)
        if self.residual_outputs:
            assert batch.residual is not None
            output = linear(batch.x.to(self._weight.dtype), self._weight, self._bias)
            error = reference - batch.residual - output
        elif self.from_inputs:
            error = reference - batch.x
        else:
            error = linear((reference - batch.x).to(self._weight.dtype), self._weight)
        self._mean.update(error, batch.x)

    def take(self) -> Tensor:
        """The mean, float32: C (out, in), or (in, in) if `from_inputs`. Nothing can be added afterwards."""
        self._weight = self._weight.new_zeros(0, 0)
        return self._mean.take()


def covariance_rows(out_features: int, in_features: int) -> int:
    """Rows of the accumulated mean: `out_features` if that is less than half of `in_features`, else `in_features`."""
    return out_features if 2 * out_features < in_features else in_features


def correct_weight(
    weight: Tensor,
    factor: Factor,
    covariance: Tensor,
    strength: float,
    *,
    from_inputs: bool = False,
    matmul_dtype: torch.dtype = torch.float32,
) -> Tensor:
    """W + strength · C H⁻¹, written into the weight W (out, in).

    `factor` is that of H (in, in). `covariance` is what ErrorCovariance.take returned, and is overwritten. With
    `from_inputs`, C is W times it, a product in `matmul_dtype`.
    """
    original_order, rows = torch.argsort(factor.order), max(1, MAX_NUMBERS // weight.shape[1])
    for part in covariance.split(rows):
        part.copy_(times_inverse(part[:, factor.order], factor.upper)[:, original_order])
    if not from_inputs:
        return weight.add_(covariance, alpha=strength)
    covariance = covariance.to(matmul_dtype)
    for part in weight.split(rows):
        part.add_(part.to(matmul_dtype) @ covariance, alpha=strength)
    return weight


def times_inverse(rows: Tensor, upper: Tensor) -> Tensor:
    """rows (n, in) times H⁻¹ = Uᵀ U for an upper triangular U (in, in), in strips that skip most of its zeros."""
    half, whole = torch.empty_like(rows), torch.empty_like(rows)
    for strip in strips(len(upper)):
        half[:, strip] = rows[:, strip.start :] @ upper[strip, strip.start :].T
    for strip in strips(len(upper)):
        whole[:, strip] = half[:, : strip.stop] @ upper[: strip.stop, strip]
    return whole
