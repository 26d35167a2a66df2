"""The loops over columns as Triton kernels for a GPU: one launch per block of columns instead of 20 per column.

Their definitions are the torch loops of the same name, `round_block` in gptq.py and `move_group` in refine.py. A
program holds all columns of a block for TILE outputs in registers. It takes a column out of them as a masked sum,
because registers cannot be indexed. Importing this file imports Triton.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from compress.core.scheme import SMALLEST_SCALE

NUMBERS = 2048  # numbers of a block that one program holds
HALF_WAY = tl.constexpr(1.5 * 2**23)  # adding and subtracting it rounds a small float32 to the nearest integer
TINY = tl.constexpr(1e-30)  # keeps a division by the energy of a dead input finite
DTYPES = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}


def round_block(columns: Tensor, scales: Tensor, zeros: Tensor, rows: Tensor, max_code: int) -> tuple[Tensor, Tensor]:
    """Round the columns of a block. Has the arguments and the result of `round_block` in gptq.py."""
    offsets, errors = torch.empty_like(columns), torch.empty_like(columns)
    size, out = columns.shape
    block, tile, programs = launch_sizes(size, out)
    rows = rows.contiguous()
    round_kernel[programs,](
        columns, scales, zeros, rows, offsets, errors, out, max_code, SIZE=size, BLOCK=block, TILE=tile
    )
    return offsets, errors


def move_group(
    codes: Tensor,
    error: Tensor,
    scales: Tensor,
    gradient: Tensor,
    hessian: Tensor,
    energy: Tensor,
    zeros: Tensor,
    max_code: int,
    dtype: torch.dtype,
) -> None:
    """Refine a group's codes and scales in place. Arguments and result are those of `move_group` in refine.py."""
    size, out = codes.shape
    block, tile, programs = launch_sizes(size, out)
    tensors = (codes, error, scales, gradient, hessian.contiguous(), energy.reciprocal(), zeros)
    limits = (float(SMALLEST_SCALE), float(torch.finfo(dtype).max))
    sizes = {"SIZE": size, "BLOCK": block, "TILE": tile}
    move_kernel[programs,](*tensors, out, max_code, *limits, DTYPE=DTYPES[dtype], **sizes)


def launch_sizes(size: int, out: int) -> tuple[int, int, int]:
    """The columns and outputs of one program, powers of 2, and the number of programs."""
    block = triton.next_power_of_2(size)
    tile = max(8, NUMBERS // block)
    return block, tile, triton.cdiv(out, tile)


@triton.jit
def round_to_integer(x, lowest, highest):  # type: ignore[no-untyped-def]
    """The nearest integer from `lowest` to `highest`, which are integers. Halves go to the even neighbour."""
    return (tl.minimum(tl.maximum(x, lowest), highest) + HALF_WAY) - HALF_WAY


@triton.jit
def round_to_dtype(x, DTYPE: tl.constexpr):  # type: ignore[no-untyped-def]
    """The float32 `x`, rounded to `DTYPE`. Triton's interpreter truncates to bfloat16, so its bits are rounded here."""
    if tl.bfloat16 == DTYPE:
        bits = x.to(tl.uint32, bitcast=True)
        bits = (bits + 32767 + bits // 65536 % 2) // 65536 * 65536
        return bits.to(tl.float32, bitcast=True)
    return x.to(DTYPE).to(tl.float32)


@triton.jit
def take_row(block, chosen):  # type: ignore[no-untyped-def]
    """The row of `block` (BLOCK, TILE) where `chosen` (BLOCK,) is True."""
    return tl.sum(tl.where(chosen[:, None], block, 0.0), 0)


@triton.jit
def round_kernel(  # type: ignore[no-untyped-def]
    columns, scales, zeros, rows, offsets, errors, out, max_code,
    SIZE: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    output, index = tl.program_id(0) * TILE + tl.arange(0, TILE), tl.arange(0, BLOCK)
    inside = output < out
    places = index[:, None] * out + output[None, :]
    block = tl.load(columns + places, (index < SIZE)[:, None] & inside[None, :], 0.0)
    for i in range(SIZE):
        column, place = take_row(block, index == i), i * out + output
        scale, zero = tl.load(scales + place, inside, 1.0), tl.load(zeros + place, inside, 0.0)
        offset = round_to_integer(column * (1.0 / scale), -zero, max_code - zero)
        error = column - offset * scale
        weights = tl.load(rows + i * SIZE + index, (index > i) & (index < SIZE), 0.0)
        block -= weights[:, None] * error[None, :]
        tl.store(offsets + place, offset, inside)
        tl.store(errors + place, error, inside)


@triton.jit
def move_kernel(  # type: ignore[no-untyped-def]
    codes, errors, scales, gradient, hessian, inverse, zeros, out, max_code, smallest, largest,
    DTYPE: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    output, index = tl.program_id(0) * TILE + tl.arange(0, TILE), tl.arange(0, BLOCK)
    inside = output < out
    whole = (index < SIZE)[:, None] & inside[None, :]
    places = index[:, None] * out + output[None, :]
    scale, zero = tl.load(scales + output, inside, 1.0), tl.load(zeros + output, inside, 0.0)
    old = tl.load(codes + places, whole, 0).to(tl.float32) - zero[None, :]
    steps = tl.load(gradient + places, whole, 0.0) / scale[None, :]
    moved, sums = tl.zeros_like(steps), tl.zeros_like(steps)  # `sums` holds H q' of the earlier columns
    slope, curvature = tl.zeros_like(scale), tl.zeros_like(scale)
    for i in range(SIZE):
        chosen = index == i
        offset, step, earlier = take_row(old, chosen), take_row(steps, chosen), take_row(sums, chosen)
        new = round_to_integer(offset - step * tl.load(inverse + i), -zero, max_code - zero)
        change = new - offset
        product = tl.load(hessian + i * SIZE + i) * new + earlier
        slope += new * step + change * product
        curvature += new * (product + earlier)
        weights = tl.load(hessian + i * SIZE + index, (index > i) & (index < SIZE), 0.0)
        steps += weights[:, None] * change[None, :]
        sums += weights[:, None] * new[None, :]
        moved = tl.where(chosen[:, None], new[None, :], moved)
    slope *= scale
    best = round_to_dtype(scale - slope / tl.maximum(curvature, TINY), DTYPE)
    change = best - scale
    better = change * (2.0 * slope + change * curvature) < 0
    storable = (tl.abs(best) >= smallest) & (tl.abs(best) <= largest) & (best * scale > 0)
    best = tl.where(better & storable, best, scale)
    error = tl.load(errors + places, whole, 0.0)
    tl.store(errors + places, error + (moved * best[None, :] - old * scale[None, :]), whole)
    tl.store(codes + places, (moved + zero[None, :]).to(tl.uint8), whole)
    tl.store(scales + output, best, inside)
