"""What a linear layer's inputs look like: running means over tokens, in float32.

All follow the device of the first input they see, and weigh every token the same however the tokens are batched.
Products of a batch may be taken in another type than float32: they are rounded once, and far finer than what a
calibration text of any length leaves open.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

MIRRORED_ROWS = 256  # at a time
STRIPS = 4  # of a triangle; more waste less arithmetic on the other side, on products too small for BLAS
WIDEST_STRIP = 1024  # still wide enough for BLAS
SHRINKAGE = 4.0


class Hessian:
    """Running mean of x xᵀ over tokens, the Hessian of GPTQ (https://arxiv.org/abs/2210.17323) up to its factor 2.

    Only the upper triangle is summed, strip by strip: three eighths of the arithmetic are saved, nearly half of a wide
    one's. `value` mirrors it.
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
        kept = self.tokens / (self.tokens + len(x))
        self.tokens += len(x)
        for rows in strips(self.in_features):
            _add_product(self._upper[rows, rows.start :], x[:, rows], x[:, rows.start :], kept, 1 / self.tokens)

    @property
    def value(self) -> Tensor:
        """(in_features, in_features) float32, exactly symmetric; a new tensor at every reading."""
        return mirrored(self._upper.clone())

    def take(self) -> Tensor:
        """The same without a copy: nothing can be added afterwards."""
        upper, self._upper = self._upper, torch.zeros(0, 0)
        return mirrored(upper)


class Cross:
    """Running mean of y xᵀ over tokens: how what is `rows` wide goes along with the inputs of a linear."""

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
        kept = self.tokens / (self.tokens + len(x))
        self.tokens += len(x)
        _add_product(self._value, y, x, kept, 1 / self.tokens)

    def take(self) -> Tensor:
        """(rows, in_features) float32: nothing can be added afterwards."""
        value, self._value = self._value, torch.zeros(0, 0)
        return value


def shrunk(hessian: Tensor, tokens: int) -> Tensor:
    """A mean of x xᵀ over `tokens`, its diagonal raised in place: by SHRINKAGE · √(in_features / tokens) of itself.

    Few tokens overestimate the correlation of inputs. Raising the diagonal shrinks all correlations by one factor
    (after Ledoit and Wolf 2004, https://doi.org/10.1016/S0047-259X(03)00096-4), whatever the scale of the inputs.
    The experiment log has both measured.
    """
    hessian.diagonal().mul_(1 + SHRINKAGE * (len(hessian) / tokens) ** 0.5)
    return hessian


def strips(size: int, narrowest: int = 1) -> Iterator[slice]:
    """Slices of the rows of a (size, size) triangle, for products that leave out most of its other side."""
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
    """Whether no value is NaN or infinite, without the temporaries of `isfinite`."""
    if not tensor.numel():
        return True
    low, high = torch.aminmax(tensor)
    return bool(torch.isfinite(low) & torch.isfinite(high))


def _add_product(total: Tensor, left: Tensor, right: Tensor, kept: float, share: float) -> None:
    """total (a, b) float32 becomes kept · total + share · leftᵀ right, of left (tokens, a) and right (tokens, b)."""
    if left.dtype == total.dtype:
        total.addmm_(left.T, right, beta=kept, alpha=share)
        return
    for rows, columns in zip(total.split(WIDEST_STRIP), left.split(WIDEST_STRIP, 1), strict=True):
        rows.mul_(kept).add_(columns.T @ right, alpha=share)


def _tokens(x: Tensor, in_features: int, dtype: torch.dtype) -> Tensor:
    """(..., in_features) -> (tokens, in_features) in `dtype`, off the graph."""
    if x.shape[-1] != in_features:
        raise ValueError(f"calibration.statistics: inputs are {x.shape[-1]} wide, {in_features} expected")
    return x.detach().reshape(-1, in_features).to(dtype)
