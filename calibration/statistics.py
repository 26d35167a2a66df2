"""Statistics of a linear's inputs: running means over tokens, in float32, on the device of the first input.

Every token has the same weight, however the tokens are batched. The product of a batch may be computed in a 16-bit
dtype: it is rounded once, an error far below the sampling error of any calibration text.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

MIRRORED_ROWS = 256  # at a time
STRIPS = 4  # per triangle; more strips save arithmetic, but their products are too small for BLAS
WIDEST_STRIP = 1024  # still wide enough for BLAS
SHRINKAGE = 4.0


class Hessian:
    """Running mean of x xᵀ over tokens, the Hessian of GPTQ (https://arxiv.org/abs/2210.17323) up to its factor 2.

    Only the upper triangle is summed, strip by strip, which saves three eighths of the arithmetic or more. `value`
    mirrors it.
    """

    def __init__(self, in_features: int, matmul_dtype: torch.dtype = torch.float32):
        self.in_features, self.matmul_dtype = in_features, matmul_dtype
        self.tokens = 0
        self._upper = torch.zeros(in_features, in_features)

    def update(self, x: Tensor) -> None:
        """Add the tokens of x (..., in_features), any floating dtype. Raises ValueError on another width."""
        x = _tokens(x, self.in_features, self.matmul_dtype)
        if not len(x):
            return
        self._upper = self._upper.to(x.device)
        decay = self.tokens / (self.tokens + len(x))
        self.tokens += len(x)
        for rows in strips(self.in_features):
            _add_product(self._upper[rows, rows.start :], x[:, rows], x[:, rows.start :], decay, 1 / self.tokens)

    @property
    def value(self) -> Tensor:
        """(in_features, in_features) float32, exactly symmetric; a new tensor each time."""
        return mirrored(self._upper.clone())

    def take(self) -> Tensor:
        """The same without a copy. No update may follow."""
        upper, self._upper = self._upper, torch.zeros(0, 0)
        return mirrored(upper)


class Cross:
    """Running mean of y xᵀ over tokens, (rows, in_features): y has `rows` values, x is the input of a linear."""

    def __init__(self, rows: int, in_features: int, matmul_dtype: torch.dtype = torch.float32):
        self.shape, self.matmul_dtype = (rows, in_features), matmul_dtype
        self.tokens = 0
        self._value = torch.zeros(rows, in_features)

    def update(self, y: Tensor, x: Tensor) -> None:
        """Add the tokens of y (..., rows) and x (..., in_features). Raises ValueError on other widths."""
        y, x = (_tokens(part, width, self.matmul_dtype) for part, width in zip((y, x), self.shape, strict=True))
        if not len(x):
            return
        self._value = self._value.to(x.device)
        decay = self.tokens / (self.tokens + len(x))
        self.tokens += len(x)
        _add_product(self._value, y, x, decay, 1 / self.tokens)

    def take(self) -> Tensor:
        """(rows, in_features) float32. No update may follow."""
        value, self._value = self._value, torch.zeros(0, 0)
        return value


def shrunk(hessian: Tensor, tokens: int) -> Tensor:
    """Shrink a mean of x xᵀ in place: its diagonal grows by SHRINKAGE · √(in_features / tokens) of itself.

    With few tokens, the correlations of inputs are overestimated. Raising the diagonal shrinks all correlations by one
    factor (after Ledoit and Wolf 2004, https://doi.org/10.1016/S0047-259X(03)00096-4), at any scale.
    The experiment log has the measurements.
    """
    hessian.diagonal().mul_(1 + SHRINKAGE * (len(hessian) / tokens) ** 0.5)
    return hessian


def strips(size: int, narrowest: int = 1) -> Iterator[slice]:
    """Row slices of a (size, size) triangle, for products that skip most of the other triangle."""
    width = max(narrowest, min(WIDEST_STRIP, -(-size // STRIPS)))
    return (slice(start, min(start + width, size)) for start in range(0, size, width))


def mirrored(upper: Tensor) -> Tensor:
    """The upper triangle of a square matrix copied onto its lower one, in place."""
    for start in range(0, len(upper), MIRRORED_ROWS):
        end = start + MIRRORED_ROWS
        corner = upper[start:end, start:end]
        corner.copy_(corner.triu() + corner.triu(1).T)
        upper[end:, start:end] = upper[start:end, end:].T
    return upper


def all_finite(tensor: Tensor) -> bool:
    """True if no value is NaN or infinite. Allocates no mask, unlike `isfinite`."""
    if not tensor.numel():
        return True
    low, high = torch.aminmax(tensor)
    return bool(torch.isfinite(low) & torch.isfinite(high))


def _add_product(total: Tensor, left: Tensor, right: Tensor, decay: float, share: float) -> None:
    """total (a, b) float32 becomes decay · total + share · leftᵀ right, for left (tokens, a) and right (tokens, b)."""
    if left.dtype == total.dtype:
        total.addmm_(left.T, right, beta=decay, alpha=share)
        return
    for rows, columns in zip(total.split(WIDEST_STRIP), left.split(WIDEST_STRIP, 1), strict=True):
        rows.mul_(decay).add_(columns.T @ right, alpha=share)


def _tokens(x: Tensor, in_features: int, dtype: torch.dtype) -> Tensor:
    """(..., in_features) -> (tokens, in_features) in `dtype`, off the graph."""
    if x.shape[-1] != in_features:
        raise ValueError(f"calibration.statistics: inputs are {x.shape[-1]} wide, {in_features} expected")
    return x.detach().reshape(-1, in_features).to(dtype)
