"""The integer grid: convert float weights to codes, and codes to float weights.

A weight (out_features, in_features) is split along its inputs into groups of `group_size` columns. Each row of a group
has one scale and one zero:

    code   = clamp(round(weight / scale + zero), 0, 2**bits - 1)
    weight ≈ (code - zero) * scale

Each code is one uint8. Only `core/pack.py` packs them into an int32.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from compress.core import kernels
from compress.core.scheme import SMALLEST_SCALE, Scheme

SEARCHED_NUMBERS = 2**22  # weights per step of the search; the candidate grids take 3 bytes per weight
SHRINKS = tuple(1 - step / 40 for step in range(24))  # tried widths, 1.0 down to 0.425 of the full range


@dataclass(frozen=True)
class QuantizedWeight:
    """A quantized weight: codes (out, in) uint8, and scales and zeros (out, groups) float32.

    Scales of a symmetric grid may be negative. All scales are already rounded to the dtype in which they are stored.
    `order` (in,) is the group of each column where columns of one group do not lie together (GPTQ's act-order); None
    means that they do.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor
    bits: int = 4
    sym: bool = False
    order: Tensor | None = None

    @property
    def group_size(self) -> int:
        return self.codes.shape[1] // self.scales.shape[1]

    @property
    def middle(self) -> int:
        """The code that stands for zero in a symmetric grid."""
        return 2 ** (self.bits - 1)

    @property
    def has_middle_zeros(self) -> bool:
        """Whether every zero is the middle code, so that a symmetric format holds the weight, whatever `sym` is."""
        return bool((self.zeros == self.middle).all())

    def dequantize(self) -> Tensor:
        """The weight (out, in) float32 that every loader computes from the checkpoint."""
        if self.order is not None:
            return dequantize(self.codes, self.scales[:, self.order], self.zeros[:, self.order])
        groups = split_groups(self.codes, self.group_size)
        return dequantize(groups, self.scales[..., None], self.zeros[..., None]).flatten(1)

    def to(self, device: torch.device | str) -> "QuantizedWeight":
        """The weight with all tensors on a device."""
        return replace(self, **{name: getattr(self, name).to(device) for name in ("codes", "scales", "zeros")})

    def rows(self, start: int, end: int) -> "QuantizedWeight":
        """The weight's output rows from `start` up to `end`, without `end`."""
        parts = {name: getattr(self, name)[start:end] for name in ("codes", "scales", "zeros")}
        return replace(self, **parts)


def join_rows(weights: list[QuantizedWeight]) -> QuantizedWeight:
    """Join the rows of all `weights`, in order, to one weight."""
    codes, scales, zeros = (torch.cat([getattr(w, name) for w in weights]) for name in ("codes", "scales", "zeros"))
    return replace(weights[0], codes=codes, scales=scales, zeros=zeros)


def split_groups(weight: Tensor, group_size: int) -> Tensor:
    """Reshape a weight (out, in) to (out, groups, group_size)."""
    in_features = weight.shape[-1]
    if in_features % group_size:
        raise ValueError(f"group_size={group_size} does not divide in_features={in_features}")
    return weight.unflatten(-1, (-1, group_size))


def quantize(weight: Tensor, scales: Tensor, zeros: Tensor, bits: int) -> Tensor:
    """The codes of `weight` as floats, in its shape. Scales and zeros must broadcast to this shape."""
    return (weight / scales + zeros).round_().clamp_(0, 2**bits - 1)


def dequantize(codes: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
    return torch.sub(codes, zeros).mul_(scales)


def min_max(grouped: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """The scales and zeros of grids that cover each group of weights (out, groups, group_size).

    Both are (out, groups) float32.
    """
    return full_range(*torch.aminmax(grouped, dim=-1), scheme)


def full_range(low: Tensor, high: Tensor, scheme: Scheme, shrink: float | Tensor = 1.0) -> tuple[Tensor, Tensor]:
    """The scales and zeros of grids that cover shrink · `low` to shrink · `high`, all (out, groups).

    Zero is always in the range. Scales are rounded to the dtype in which they are stored.
    """
    low, high = low.clamp(max=0) * shrink, high.clamp(min=0) * shrink
    max_code = scheme.max_code
    if scheme.sym:
        high = torch.maximum(high, -low)
        low = -high
    scales = ((high - low) / max_code).clamp(min=SMALLEST_SCALE).to(scheme.dtype.torch).float()
    zeros = torch.full_like(scales, (max_code + 1) // 2) if scheme.sym else (-low / scales).round().clamp(0, max_code)
    return scales, zeros


def find_grid(weight: Tensor, scheme: Scheme, importance: Tensor) -> tuple[Tensor, Tensor]:
    """Find the grid of each group with the least Σ importance · (weight - rounded)². Returns scales and zeros.

    Both are (out, groups) float32. `importance` (in,) is the mean square of each input, the diagonal of the Hessian.
    With ones, the search minimises the plain squared error. The candidates are the group's full range, and ranges
    shrunk by SHRINKS. The first candidate wins a tie.
    """
    grouped = split_groups(weight.float(), scheme.group_size)
    importance = split_groups(importance[None], scheme.group_size)[0]
    rows = max(1, SEARCHED_NUMBERS // weight.shape[1])
    grids = [find_rows_grid(part, scheme, importance) for part in grouped.split(rows)]
    return torch.cat([scales for scales, _ in grids]), torch.cat([zeros for _, zeros in grids])


def find_rows_grid(grouped: Tensor, scheme: Scheme, importance: Tensor) -> tuple[Tensor, Tensor]:
    """Do the work of `find_grid` for weights (out, groups, group_size), with importance (groups, group_size)."""
    low, high = torch.aminmax(grouped, dim=-1)
    shrinks = torch.tensor(SHRINKS, device=low.device)[:, None, None]
    full = full_range(low, high, scheme)
    shrunk = (signed_range if scheme.sym else full_range)(low, high, scheme, shrinks)
    scales, zeros = (torch.cat([first[None], others]) for first, others in zip(full, shrunk, strict=True))
    choose = kernels.best_grid if grouped.device.type == "cpu" else best_grid
    best = choose(grouped, importance, scales, zeros, scheme.max_code)[None]
    return scales.gather(0, best)[0], zeros.gather(0, best)[0]


def signed_range(low: Tensor, high: Tensor, scheme: Scheme, shrink: float | Tensor) -> tuple[Tensor, Tensor]:
    """The scales and zeros of symmetric grids. The lowest code stands for `shrink` times the group's largest weight.

    A symmetric grid has one more code below its zero than above it. So the lowest code has the largest magnitude, and
    the group's largest weight gets it. The scale is negative if that weight is positive. Steps are smaller than those
    of `full_range`: with 4 bits, 15/16 of them.
    """
    middle = 2 ** (scheme.bits - 1)
    scales = torch.where(high > -low, high, low) * (-shrink / middle)
    scales = away_from_zero(scales).to(scheme.dtype.torch).float()
    return scales, torch.full_like(scales, middle)


def away_from_zero(scales: Tensor) -> Tensor:
    """The scales, with their absolute values raised to at least SMALLEST_SCALE."""
    return torch.where(scales < 0, scales.clamp(max=-SMALLEST_SCALE), scales.clamp(min=SMALLEST_SCALE))


def best_grid(grouped: Tensor, importance: Tensor, scales: Tensor, zeros: Tensor, max_code: int) -> Tensor:
    """The index of the grid with the least Σ importance · (weight - rounded)² for each group, (out, groups) int64.

    `scales` and `zeros` are (grids, out, groups). The first grid wins a tie. On a CPU, `kernels.best_grid` is used
    instead.
    """
    best, least, work = torch.zeros_like(scales[0], dtype=torch.int64), None, torch.empty_like(grouped)
    for index, (scale, zero) in enumerate(zip(scales[..., None], zeros[..., None], strict=True)):
        offsets = torch.div(grouped, scale, out=work).add_(zero).round_().clamp_(0, max_code).sub_(zero)
        loss = torch.addcmul(grouped, offsets, scale, value=-1, out=work).square_().mul_(importance).sum(-1)
        least = loss if least is None else least
        best.masked_fill_(loss < least, index)
        least = torch.minimum(least, loss)
    return best
