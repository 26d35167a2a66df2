"""Error correction: before rounding, move the weights towards the least-squares fit to the 16-bit outputs.

    minimise over W*  mean over tokens of ‖y₁₆ − W* x‖²,   so  W* = W + C H⁻¹,  C = mean of (y₁₆ − W x) xᵀ

x is the input that the quantized layers before this one compute. y₁₆ = W x₁₆ is the output in the 16-bit model. If the
output is added to the residual stream r, the sum is fitted instead: y₁₆ = r₁₆ + W x₁₆ − r. This also corrects errors in
r. Qronos (Zhang et al. 2025, https://arxiv.org/abs/2505.11695) uses the target without r. C comes from few tokens
and fits them too well, so H is shrunk, and only W + strength · C H⁻¹ is quantized.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from calibration.statistics import Cross, strips
from compress.quantize.methods.gptq import Factor

MAX_NUMBERS = 2**23  # numbers per step: with 18944 inputs, Hessian and factor leave little memory


class StageInput(NamedTuple):
    """One micro-batch at a stage: x (batch, seq, in) is the input of the stage's linears.

    `residual` (batch, seq, hidden) is the residual stream before the stage's output is added. It is None if the family
    table does not name the module that reads the stream.
    """

    x: Tensor
    residual: Tensor | None = None


class ErrorCovariance:
    """Accumulates C of one stage, batch by batch: the mean of (output error) xᵀ for the stage's weight (out, in).

    With `residual_outputs`, references are states of the residual stream after the stage, (..., out), bias included.
    Otherwise they are inputs of the stage in the 16-bit model, (..., in). The output error is then W (x₁₆ − x). If W
    has many outputs, it is cheaper to accumulate the mean of (x₁₆ − x) xᵀ, (in, in), and to multiply it by W only once
    at the end. `from_inputs` is True in this case.
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
        """Add one batch and the 16-bit model's reference for it. Raises ValueError if a width differs."""
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
        """The accumulated mean, float32: C (out, in), or (in, in) if `from_inputs`. Do not call `update` afterwards."""
        self._weight = self._weight.new_zeros(0, 0)
        return self._mean.take()


def covariance_rows(out_features: int, in_features: int) -> int:
    """Rows of the accumulated mean: `out_features` if they are less than half of `in_features`, else `in_features`."""
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
    """Compute W + strength · C H⁻¹ in place of the weight W (out, in), and return it.

    `factor` is the factor of H (in, in). `covariance` comes from `ErrorCovariance.take` and is overwritten. It is C, or
    with `from_inputs` the matrix (in, in) with C = W · `covariance`. That product is computed in `matmul_dtype`.
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
    """The product of `rows` (n, in) and H⁻¹ = Uᵀ U, for an upper triangular U (in, in).

    It is computed strip by strip, which skips most zeros of U.
    """
    half, whole = torch.empty_like(rows), torch.empty_like(rows)
    for strip in strips(len(upper)):
        half[:, strip] = rows[:, strip.start :] @ upper[strip, strip.start :].T
    for strip in strips(len(upper)):
        whole[:, strip] = half[:, : strip.stop] @ upper[: strip.stop, strip]
    return whole
