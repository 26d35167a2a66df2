"""Statistics of a linear's inputs: running means over tokens, in float32, on the device of the first input.

Every token has the same weight, whatever the size of its batch. The product of a batch may be computed in a 16-bit
dtype. This rounds the product once; the error is far below the sampling error of any calibration text.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

MIRRORED_ROWS = 256  # rows copied at a time
STRIPS = 4  # strips per triangle; more would save arithmetic, but products of narrow strips are slow in BLAS
WIDEST_STRIP = 1024  # rows
SHRINKAGE = 4.0


class Hessian:
    """Running mean of x xᵀ over tokens: half the Hessian of GPTQ (https://arxiv.org/abs/2210.17323).

    Only the upper triangle is summed, in strips of rows. This saves at least three eighths of the arithmetic. `value`
    and `take` copy the upper triangle onto the lower one.
    """

    def __init__(self, in_features: int, matmul_dtype: torch.dtype = torch.float32):
        self.in_features, self.matmul_dtype = in_features, matmul_dtype
        self.tokens = 0
        self._upper = torch.zeros(0, 0)  # allocated by the first batch, on its device

    def update(self, x: Tensor) -> None:
        """Add the tokens of x (..., in_features), of any floating dtype. Raises ValueError if x has another width."""
        x = _tokens(x, self.in_features, self.matmul_dtype)
        if not len(x):
            return
        if not self.tokens:
            self._upper = torch.zeros(self.in_features, self.in_features, device=x.device)
        decay = self.tokens / (self.tokens + len(x))
        self.tokens += len(x)
        for rows in strips(self.in_features):
            _add_product(self._upper[rows, rows.start :], x[:, rows], x[:, rows.start :], decay, 1 / self.tokens)

    @property
    def value(self) -> Tensor:
        """The mean, (in_features, in_features) float32, exactly symmetric. Each read returns a new tensor."""
        return mirrored(self._sum().clone())

    def _sum(self) -> Tensor:
        return self._upper if self.tokens else torch.zeros(self.in_features, self.in_features)

    def take(self) -> Tensor:
        """The same matrix as `value`, without a copy. Do not call `update` afterwards."""
        upper, self._upper = self._sum(), torch.zeros(0, 0)
        return mirrored(upper)


class Cross:
    """Running mean of y xᵀ over tokens, (rows, in_features): x is a linear's input, y has `rows` values per token."""

    def __init__(self, rows: int, in_features: int, matmul_dtype: torch.dtype = torch.float32):
        self.shape, self.matmul_dtype = (rows, in_features), matmul_dtype
        self.tokens = 0
        self._value = torch.zeros(0, 0)  # allocated by the first batch, on its device

    def update(self, y: Tensor, x: Tensor) -> None:
        """Add the tokens of y (..., rows) and x (..., in_features). Raises ValueError if one has another width."""
        y, x = (_tokens(part, width, self.matmul_dtype) for part, width in zip((y, x), self.shape, strict=True))
        if not len(x):
            return
        if not self.tokens:
            self._value = torch.zeros(self.shape, device=x.device)
        decay = self.tokens / (self.tokens + len(x))
        self.tokens += len(x)
        _add_product(self._value, y, x, decay, 1 / self.tokens)

    def take(self) -> Tensor:
        """The mean, (rows, in_features) float32, without a copy. Do not call `update` afterwards."""
        value, self._value = self._value if self.tokens else torch.zeros(self.shape), torch.zeros(0, 0)
        return value


def shrunk(hessian: Tensor, tokens: int) -> Tensor:
    """Shrink correlations in a mean of x xᵀ, in place: scale its diagonal by 1 + SHRINKAGE · √(in_features / tokens).

    A mean over few tokens overestimates correlations. A larger diagonal shrinks all correlations by the same factor
    (after Ledoit and Wolf 2004, https://doi.org/10.1016/S0047-259X(03)00096-4). The experiment log has measurements.
    """
    hessian.diagonal().mul_(1 + SHRINKAGE * (len(hessian) / tokens) ** 0.5)
    return hessian


def strips(size: int, narrowest: int = 1) -> Iterator[slice]:
    """Slices that split the rows of a (size, size) triangular matrix into strips.

    A product that works strip by strip can skip most of the other triangle. All strips but the last have at least
    `narrowest` rows.
    """
    width = max(narrowest, min(WIDEST_STRIP, -(-size // STRIPS)))
    return (slice(start, min(start + width, size)) for start in range(0, size, width))


def mirrored(upper: Tensor) -> Tensor:
    """Copy the upper triangle of a square matrix onto its lower triangle, in place, and return the matrix."""
    for start in range(0, len(upper), MIRRORED_ROWS):
        end = start + MIRRORED_ROWS
        corner = upper[start:end, start:end]
        corner.copy_(corner.triu() + corner.triu(1).T)
        upper[end:, start:end] = upper[start:end, end:].T
    return upper


def all_finite(tensor: Tensor) -> bool:
    """True if no value is NaN or infinite. Unlike `isfinite`, this allocates no mask."""
    if not tensor.numel():
        return True
    low, high = torch.aminmax(tensor.float() if tensor.element_size() == 1 else tensor)
    return bool(torch.isfinite(low) & torch.isfinite(high))


def _add_product(total: Tensor, left: Tensor, right: Tensor, decay: float, share: float) -> None:
    """total (a, b) float32 becomes decay · total + share · leftᵀ right, for left (tokens, a) and right (tokens, b)."""
    if left.dtype == total.dtype:
        total.addmm_(left.T, right, beta=decay, alpha=share)
        return
    for rows, columns in zip(total.split(WIDEST_STRIP), left.split(WIDEST_STRIP, 1), strict=True):
        product = torch.mm(columns.T, right, total.dtype) if right.is_cuda else columns.T @ right  # a GPU rounds no sum
        rows.mul_(decay).add_(product, alpha=share)


def _tokens(x: Tensor, in_features: int, dtype: torch.dtype) -> Tensor:
    """Reshape x (..., in_features) to (tokens, in_features), in `dtype`, detached from the graph."""
    if x.shape[-1] != in_features:
        raise ValueError(f"calibration.statistics: inputs have {x.shape[-1]} features, but {in_features} are expected")
    return x.detach().reshape(-1, in_features).to(dtype)
