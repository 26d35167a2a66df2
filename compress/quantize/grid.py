"""The integer grid: how float weights become codes, and back.

A weight (out_features, in_features) is cut along its input axis into groups of `group_size` columns.
Every row of every group has one scale and one zero:

    code   = clamp(round(weight / scale + zero), 0, 2**bits - 1)
    weight ≈ (code - zero) * scale

Codes are one uint8 each. Only `checkpoint/pack.py` knows how they lie in an int32.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

SMALLEST_SCALE = 2.0**-14  # the smallest normal float16: smaller scales lose bits on disk
CACHED_NUMBERS = 2**18  # float32, 1 MiB: what a core's cache holds
SHRINKS = tuple(1 - step / 40 for step in range(24))  # 1.0 down to 0.425 of the full range


@dataclass(frozen=True)
class QuantizedWeight:
    """codes (out, in) uint8; scales (of any sign where sym) and zeros (out, groups) float32, as they are on disk."""

    codes: Tensor
    scales: Tensor
    zeros: Tensor
    bits: int = 4
    sym: bool = False

    @property
    def group_size(self) -> int:
        return self.codes.shape[1] // self.scales.shape[1]

    def dequantize(self) -> Tensor:
        """(out, in) float32: what every loader will compute from the stored numbers."""
        groups = split_groups(self.codes, self.group_size)
        return dequantize(groups, self.scales[..., None], self.zeros[..., None]).flatten(1)

    def rows(self, start: int, end: int) -> "QuantizedWeight":
        """The same weight, output rows start to end only."""
        parts = {name: getattr(self, name)[start:end] for name in ("codes", "scales", "zeros")}
        return replace(self, **parts)


def split_groups(weight: Tensor, group_size: int) -> Tensor:
    """(out_features, in_features) -> (out_features, groups, group_size)."""
    in_features = weight.shape[-1]
    if in_features % group_size:
        raise ValueError(f"group_size={group_size} does not divide in_features={in_features}")
    return weight.unflatten(-1, (-1, group_size))


def quantize(weight: Tensor, scales: Tensor, zeros: Tensor, bits: int) -> Tensor:
    """Codes as floats, the shape of `weight`. Scales and zeros must broadcast against it."""
    return (weight / scales + zeros).round_().clamp_(0, 2**bits - 1)


def dequantize(codes: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
    return (codes.float() - zeros) * scales


def min_max(grouped: Tensor, *, bits: int, sym: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Scales and zeros, each (out, groups) float32, of (out, groups, group_size) weights: the groups' own ranges."""
    return full_range(*torch.aminmax(grouped, dim=-1), bits=bits, sym=sym, dtype=dtype)


def full_range(
    low: Tensor, high: Tensor, *, bits: int, sym: bool = False, shrink: float = 1.0, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The grid of groups whose weights lie from `low` to `high` (out, groups), that range times `shrink`.

    Scales are rounded to `dtype`, as the disk will hold them.
    """
    low, high = low.clamp(max=0) * shrink, high.clamp(min=0) * shrink
    max_code = 2**bits - 1
    if sym:
        high = torch.maximum(high, -low)
        low = -high
    scales = ((high - low) / max_code).clamp(min=SMALLEST_SCALE).to(dtype).float()
    zeros = torch.full_like(scales, (max_code + 1) // 2) if sym else (-low / scales).round().clamp(0, max_code)
    return scales, zeros


def search_grid(
    weight: Tensor, importance: Tensor, *, bits: int = 4, group_size: int, sym: bool, dtype: torch.dtype = torch.float16
) -> tuple[Tensor, Tensor]:
    """Scales and zeros, each (out, groups) float32, that lose least: Σ importance · (weight - rounded)² per group.

    `importance` (in,) is the mean square of each input, the diagonal of the Hessian; ones make it a search for the
    least squared error. Candidates are the groups' own range, then ranges shrunk by SHRINKS; earlier ones win ties.
    A CPU looks at as many rows at a time as its cache holds; every row's grid is its own.
    """
    grouped = split_groups(weight.float(), group_size)
    weights_of_columns = split_groups(importance[None], group_size)
    rows = max(1, CACHED_NUMBERS // weight.shape[1]) if weight.device.type == "cpu" else len(weight)
    grids = [search_rows(part, weights_of_columns, bits, sym, dtype) for part in grouped.split(rows)]
    return torch.cat([scales for scales, _ in grids]), torch.cat([zeros for _, zeros in grids])


def search_rows(grouped: Tensor, importance: Tensor, bits: int, sym: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """`search_grid` of (out, groups, group_size) weights, importance (1, groups, group_size)."""
    low, high = torch.aminmax(grouped, dim=-1)
    shrunk, work = signed_range if sym else full_range, torch.empty_like(grouped)
    grid = full_range(low, high, bits=bits, sym=sym, dtype=dtype)
    best = (grid_loss(grouped, importance, *grid, bits, work), *grid)
    for shrink in SHRINKS:
        grid = shrunk(low, high, bits=bits, shrink=shrink, dtype=dtype)
        found = (grid_loss(grouped, importance, *grid, bits, work), *grid)
        better = found[0] < best[0]
        best = tuple(torch.where(better, new, old) for new, old in zip(found, best, strict=True))  # type: ignore[assignment]
    return best[1], best[2]


def signed_range(low: Tensor, high: Tensor, *, bits: int, shrink: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A symmetric grid whose lowest code lies on each group's largest weight, times `shrink`; see `full_range`.

    The codes reach one step further below the zero than above it. So the scale is negative where the largest weight is
    positive, and steps are 15/16 of those of a range that treats both sides alike.
    """
    scales = torch.where(high > -low, high, low) * (-shrink / 2 ** (bits - 1))
    scales = away_from_zero(scales).to(dtype).float()
    return scales, torch.full_like(scales, 2 ** (bits - 1))


def away_from_zero(scales: Tensor) -> Tensor:
    """The same scales, none smaller in size than SMALLEST_SCALE."""
    return torch.where(scales < 0, scales.clamp(max=-SMALLEST_SCALE), scales.clamp(min=SMALLEST_SCALE))


def grid_loss(grouped: Tensor, importance: Tensor, scales: Tensor, zeros: Tensor, bits: int, work: Tensor) -> Tensor:
    """(out, groups): Σ importance · (weight - rounded)² over each group's columns; `work` is overwritten."""
    scales, zeros = scales[..., None], zeros[..., None]
    offsets = torch.div(grouped, scales, out=work).add_(zeros).round_().clamp_(0, 2**bits - 1).sub_(zeros)
    error = torch.addcmul(grouped, offsets, scales, value=-1, out=work)
    return error.square_().mul_(importance).sum(-1)
