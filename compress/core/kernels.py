"""Loops over columns and over candidate grids, compiled by numba for the CPU.

In torch, every column costs several calls, and each call takes longer than its arithmetic. These loops work on TILE
outputs at a time, so that a tile's columns stay in the cache of one core. They run without Python's lock.

Each function has a torch twin of the same name for other devices: `round_block` in gptq.py, `move_group` in refine.py,
`best_grid` in grid.py. The results are equal, except for values halfway between two codes.
"""

from collections.abc import Callable
from functools import cache, wraps
from threading import Lock
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compress.core.scheme import SMALLEST_SCALE

TINY = 1e-30  # keeps a division by the energy of a dead input finite
TILE = 64  # outputs per tile: with 64 columns, a tile takes 16 KiB


COMPILING = Lock()  # two threads that call a loop first would each compile it


def compiled(**options: Any) -> Callable[..., Any]:
    """Compile a function at its first call. If numba finds a writable folder, cache the compiled code there.

    The first call also imports numba, so a command that runs no kernel does not wait for the import. A compiled
    function may call other compiled functions of its module.
    """

    def decorate(function: FunctionType) -> Callable[..., None]:
        @cache
        def compile_function() -> Any:
            import numba

            linked = link(function)
            try:
                return numba.njit(nogil=True, error_model="numpy", cache=True, **options)(linked)
            except RuntimeError:
                return numba.njit(nogil=True, error_model="numpy", **options)(linked)

        @wraps(function)
        def call(*args: Any) -> None:
            with COMPILING:
                compiled_function = compile_function()
            return compiled_function(*args)

        call.compile_function = compile_function  # type: ignore[attr-defined]
        return call

    return decorate


def link(function: FunctionType) -> FunctionType:
    """A copy of a function. Where the function calls `compiled` functions, the copy calls their compiled code."""
    names = function.__globals__
    called = {name: names[name] for name in function.__code__.co_names if hasattr(names.get(name), "compile_function")}
    return FunctionType(
        function.__code__, names | {name: each.compile_function() for name, each in called.items()}, function.__name__
    )


def round_block(columns: Tensor, scales: Tensor, zeros: Tensor, rows: Tensor, max_code: int) -> tuple[Tensor, Tensor]:
    """Round the columns of a block. Has the arguments and the result of `round_block` in gptq.py."""
    offsets, errors = torch.empty(2, *columns.shape)
    round_tiles(*arrays(columns, scales, zeros, rows), np.float32(max_code), *arrays(offsets, errors))
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
    assert codes.is_contiguous() and error.is_contiguous() and scales.is_contiguous()  # else a copy would be changed
    tensors = arrays(codes, error, scales, gradient, hessian, energy.reciprocal(), zeros)
    move_tiles(*tensors, np.float32(max_code), *scale_limits(dtype))


@cache
def scale_limits(dtype: torch.dtype) -> tuple[np.float32, np.float32, np.float32]:
    """The smallest and the largest scale in `dtype`, and the factor that rounds a float32 to `dtype` (Dekker 1971)."""
    info = torch.finfo(dtype)
    splitter = 1 + info.eps / torch.finfo(torch.float32).eps
    return np.float32(SMALLEST_SCALE), np.float32(info.max), np.float32(splitter)


def best_grid(grouped: Tensor, importance: Tensor, scales: Tensor, zeros: Tensor, max_code: int) -> Tensor:
    """The index of each group's best grid. Has the arguments and the result of `best_grid` in grid.py."""
    best = torch.empty(grouped.shape[:2], dtype=torch.int64)
    try_grids(*arrays(grouped, importance, scales, zeros), np.float32(max_code), best.numpy())
    return best


def arrays(*tensors: Tensor) -> tuple[np.ndarray, ...]:
    """The tensors as contiguous numpy arrays. The array of a contiguous tensor shares its memory and may be written."""
    return tuple(tensor.contiguous().numpy() for tensor in tensors)


# LLVM vectorizes only inner loops that write one array and read few, all sliced to the loop's length.


@compiled()
def round_tiles(columns, scales, zeros, rows, max_code, offsets, errors):  # type: ignore[no-untyped-def]
    """Round the columns of a block in order. Subtract each column's error from later columns, weighted by `rows`.

    offsetᵢ = clamp(round(columnᵢ / scaleᵢ), -zero, max_code - zero),  errorᵢ = columnᵢ - offsetᵢ scaleᵢ
    columnⱼ -= rowsᵢⱼ errorᵢ   for j > i
    """
    size = len(columns)
    tile = np.zeros((size, TILE), np.float32)
    error = np.zeros(TILE, np.float32)
    for start in range(0, columns.shape[1], TILE):
        stop = min(start + TILE, columns.shape[1])
        width = stop - start
        for i in range(size):
            tile[i, :width] = columns[i, start:stop]
        for i in range(size):
            column, scale, zero, offset = tile[i], scales[i, start:stop], zeros[i, start:stop], offsets[i, start:stop]
            for t in range(width):
                offset[t] = min(max(np.rint(column[t] * (np.float32(1) / scale[t])), -zero[t]), max_code - zero[t])
            for t in range(width):
                error[t] = column[t] - offset[t] * scale[t]
            for j in range(i + 1, size):
                later, weight = tile[j], rows[i, j]
                for t in range(TILE):
                    later[t] -= weight * error[t]
            errors[i, start:stop] = error[:width]


@compiled()
def move_tiles(  # type: ignore[no-untyped-def]
    codes, error, scales, gradient, hessian, inverse, zeros, max_code, smallest, largest, splitter
):
    """Move a group's codes and then its scales to a lower output error tr(E H Eᵀ), in place.

    For one output, with offsets q = code - zero, scale s and gradient g = H E; a prime marks the new values:

        q'ᵢ = clamp(round(qᵢ - stepᵢ / Hᵢᵢ), -zero, max_code - zero),  step = g / s + H (q' - q) of earlier columns
        s'  = s - slope / curvature,  slope = q'ᵀ (g + s H (q' - q)),  curvature = q'ᵀ H q'
        E  += s' q' - s q

    `inverse` holds 1 / Hᵢᵢ.
    """
    size = len(codes)
    steps, sums, moved = np.zeros((3, size, TILE), np.float32)
    slope, curvature, new_scale = np.zeros((3, TILE), np.float32)
    for start in range(0, len(scales), TILE):
        stop = min(start + TILE, len(scales))
        scale, zero = scales[start:stop], zeros[start:stop]
        slope[:], curvature[:], sums[:] = 0, 0, 0
        for i in range(size):
            step, slopes = steps[i], gradient[i, start:stop]
            for t in range(stop - start):
                step[t] = slopes[t] / scale[t]
        move_codes(codes, start, stop, zero, hessian, inverse, max_code, steps, sums, moved, slope, curvature)
        for t in range(stop - start):
            slope[t] *= scale[t]
        move_scales(scale, slope, curvature, new_scale, smallest, largest, splitter)
        store_tile(codes, error, start, stop, scale, zero, moved, new_scale)


@compiled()
def move_codes(  # type: ignore[no-untyped-def]
    codes, start, stop, zero, hessian, inverse, max_code, steps, sums, moved, slope, curvature
):
    """Fill `moved` with the new offsets q', and sum up slope / s and curvature. `move_tiles` explains the symbols.

    `sums` holds H q' of the earlier columns.
    """
    width = stop - start
    old, change, product = np.zeros((3, TILE), np.float32)
    for i in range(len(codes)):
        step, new, code, factor = steps[i], moved[i], codes[i, start:stop], inverse[i]
        for t in range(width):
            old[t] = np.float32(code[t]) - zero[t]
        for t in range(width):
            new[t] = min(max(np.rint(old[t] - step[t] * factor), -zero[t]), max_code - zero[t])
        for t in range(width):
            change[t] = new[t] - old[t]
        energy, earlier = hessian[i, i], sums[i]
        for t in range(width):
            product[t] = energy * new[t] + earlier[t]
        for t in range(width):
            slope[t] += new[t] * step[t] + change[t] * product[t]
        for t in range(width):
            curvature[t] += new[t] * (product[t] + earlier[t])
        for j in range(i + 1, len(codes)):
            later_step, later_sum, weight = steps[j], sums[j], hessian[i, j]
            for t in range(TILE):
                later_step[t] += weight * change[t]
            for t in range(TILE):
                later_sum[t] += weight * new[t]


@compiled()
def move_scales(scale, slope, curvature, new_scale, smallest, largest, splitter):  # type: ignore[no-untyped-def]
    """Fill `new_scale` with the new scales, or with the old scale where the new one raises the error.

    The old scale also stays if the new one cannot be stored or has the other sign.
    """
    for t in range(len(scale)):
        best = scale[t] - slope[t] / max(curvature[t], np.float32(TINY))
        wide = splitter * best
        best = wide - (wide - best)
        change = best - scale[t]
        better = change * (2 * slope[t] + change * curvature[t]) < 0
        storable = smallest <= abs(best) <= largest and best * scale[t] > 0
        new_scale[t] = best if better and storable else scale[t]


@compiled()
def store_tile(codes, error, start, stop, scale, zero, moved, new_scale):  # type: ignore[no-untyped-def]
    """Write the new codes and scales of outputs `start` to `stop`, and add the change of the weight to `error`."""
    width = stop - start
    for i in range(len(codes)):
        off, new, code = error[i, start:stop], moved[i], codes[i, start:stop]
        for t in range(width):
            off[t] += new[t] * new_scale[t] - (np.float32(code[t]) - zero[t]) * scale[t]
        for t in range(width):
            code[t] = np.uint8(new[t] + zero[t])
    scale[:] = new_scale[:width]


@compiled(fastmath={"reassoc", "nsz"})  # lets the compiler sum in another order, with vectors
def try_grids(grouped, importance, scales, zeros, max_code, best):  # type: ignore[no-untyped-def]
    """Fill `best` (out, groups) with the index of the grid that has the least Σ importance · (weight - rounded)²."""
    size = grouped.shape[2]
    for row in range(len(grouped)):
        for group in range(grouped.shape[1]):
            weight, factors = grouped[row, group], importance[group]
            least, index = np.float32(np.inf), 0
            for grid in range(len(scales)):
                scale, zero, loss = scales[grid, row, group], zeros[grid, row, group], np.float32(0)
                for i in range(size):
                    offset = min(max(np.rint(weight[i] / scale + zero), np.float32(0)), max_code) - zero
                    error = weight[i] - offset * scale
                    loss += error * error * factors[i]
                if loss < least:
                    least, index = loss, grid
            best[row, group] = index
