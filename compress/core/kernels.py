"""Loops that go column after column or range after range, compiled for the CPU.

In torch every column costs several calls, each longer than its arithmetic. Numba compiles these loops when they are
first called, in about two seconds, and keeps them. They go over TILE outputs at a time, whose columns stay in a core's
cache, on the thread that calls them, without Python's lock. Names, shapes and, but for ties, results are those of the
torch loops that serve other devices: `round_block` of gptq.py, `move_group` of refine.py, `best_grid` of grid.py.
"""

from collections.abc import Callable
from functools import cache, wraps
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor

SMALLEST_SCALE = 2.0**-14  # the smallest normal float16: smaller scales lose bits on disk
TINY = 1e-30  # an input that never fires has no energy and no gradient: nothing moves
TILE = 64  # outputs: 64 columns of them are 16 KiB


COMPILING = Lock()  # two threads that call a loop first would each compile it


def compiled(**options: Any) -> Callable[..., Any]:
    """Compile a function at its first call, and cache it on disk where numba finds a writable folder.

    numba is imported by that call, so a command that runs no kernel does not wait for the import.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @cache
        def compile_function() -> Any:
            import numba

            try:
                return numba.njit(nogil=True, error_model="numpy", cache=True, **options)(function)
            except RuntimeError:
                return numba.njit(nogil=True, error_model="numpy", **options)(function)

        @wraps(function)
        def call(*args: Any) -> None:
            with COMPILING:
                compiled_function = compile_function()
            return compiled_function(*args)

        return call

    return decorate


def round_block(columns: Tensor, scales: Tensor, zeros: Tensor, rows: Tensor, max_code: int) -> tuple[Tensor, Tensor]:
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
    assert codes.is_contiguous() and error.is_contiguous() and scales.is_contiguous()  # else a copy would be written
    given = arrays(codes, error, scales, gradient, hessian, energy.reciprocal(), zeros)
    move_tiles(*given, np.float32(max_code), *scale_limits(dtype))


@cache
def scale_limits(dtype: torch.dtype) -> tuple[np.float32, np.float32, np.float32]:
    """The smallest and the largest scale in `dtype`, and what splits a float32's other bits off (Dekker 1971)."""
    info = torch.finfo(dtype)
    splitter = 1 + info.eps / torch.finfo(torch.float32).eps
    return np.float32(SMALLEST_SCALE), np.float32(info.max), np.float32(splitter)


def best_grid(grouped: Tensor, importance: Tensor, scales: Tensor, zeros: Tensor, max_code: int) -> Tensor:
    best = torch.empty(grouped.shape[:2], dtype=torch.int64)
    try_grids(*arrays(grouped, importance, scales, zeros), np.float32(max_code), best.numpy())
    return best


def arrays(*parts: Tensor) -> tuple[np.ndarray, ...]:
    """What numba reads: the tensors' own memory where it is contiguous, which is what a loop may write to."""
    return tuple(part.contiguous().numpy() for part in parts)


# Only loops with one array to write and few to read, all cut to length, become vectors.


@compiled()
def round_tiles(columns, scales, zeros, rows, max_code, offsets, errors):  # type: ignore[no-untyped-def]
    size = len(columns)
    left = np.zeros((size, TILE), np.float32)
    error = np.zeros(TILE, np.float32)
    for start in range(0, columns.shape[1], TILE):
        stop = min(start + TILE, columns.shape[1])
        width = stop - start
        for i in range(size):
            left[i, :width] = columns[i, start:stop]
        for i in range(size):
            own, scale, zero, offset = left[i], scales[i, start:stop], zeros[i, start:stop], offsets[i, start:stop]
            for t in range(width):
                offset[t] = min(max(np.rint(own[t] * (np.float32(1) / scale[t])), -zero[t]), max_code - zero[t])
            for t in range(width):
                error[t] = own[t] - offset[t] * scale[t]
            for j in range(i + 1, size):
                later, share = left[j], rows[i, j]
                for t in range(TILE):
                    later[t] -= share * error[t]
            errors[i, start:stop] = error[:width]


@compiled()
def move_tiles(  # type: ignore[no-untyped-def]
    codes, error, scales, gradient, hessian, inverse, zeros, max_code, smallest, largest, splitter
):
    size = len(codes)
    steps, sums, moved = np.zeros((3, size, TILE), np.float32)
    old, change, product, slope, curvature, found = np.zeros((6, TILE), np.float32)
    for start in range(0, len(scales), TILE):
        stop = min(start + TILE, len(scales))
        width = stop - start
        scale, zero = scales[start:stop], zeros[start:stop]
        slope[:] = 0
        curvature[:] = 0
        sums[:] = 0
        for i in range(size):
            own, given = steps[i], gradient[i, start:stop]
            for t in range(width):
                own[t] = given[t] / scale[t]
        for i in range(size):
            own, new, code, factor = steps[i], moved[i], codes[i, start:stop], inverse[i]
            for t in range(width):
                old[t] = np.float32(code[t]) - zero[t]
            for t in range(width):
                new[t] = min(max(np.rint(old[t] - own[t] * factor), -zero[t]), max_code - zero[t])
            for t in range(width):
                change[t] = new[t] - old[t]
            energy, before = hessian[i, i], sums[i]
            for t in range(width):
                product[t] = energy * new[t] + before[t]
            for t in range(width):
                slope[t] += new[t] * own[t] + change[t] * product[t]
            for t in range(width):
                curvature[t] += new[t] * (product[t] + before[t])
            for j in range(i + 1, size):
                later, behind, share = steps[j], sums[j], hessian[i, j]
                for t in range(TILE):
                    later[t] += share * change[t]
                for t in range(TILE):
                    behind[t] += share * new[t]
        for t in range(width):
            slope[t] *= scale[t]
        for t in range(width):
            best = scale[t] - slope[t] / max(curvature[t], np.float32(TINY))
            wide = splitter * best
            best = wide - (wide - best)
            far = best - scale[t]
            better = far * (2 * slope[t] + far * curvature[t]) < 0
            sound = smallest <= abs(best) <= largest and best * scale[t] > 0
            found[t] = best if better and sound else scale[t]
        for i in range(size):
            off, new, code = error[i, start:stop], moved[i], codes[i, start:stop]
            for t in range(width):
                off[t] += new[t] * found[t] - (np.float32(code[t]) - zero[t]) * scale[t]
            for t in range(width):
                code[t] = np.uint8(new[t] + zero[t])
        scale[:] = found[:width]


@compiled(fastmath={"reassoc", "nsz"})  # a sum becomes vectors in another order
def try_grids(grouped, importance, scales, zeros, max_code, best):  # type: ignore[no-untyped-def]
    size = grouped.shape[2]
    for row in range(len(grouped)):
        for group in range(grouped.shape[1]):
            weight, share = grouped[row, group], importance[group]
            least, found = np.float32(np.inf), 0
            for grid in range(len(scales)):
                scale, zero, loss = scales[grid, row, group], zeros[grid, row, group], np.float32(0)
                for i in range(size):
                    offset = min(max(np.rint(weight[i] / scale + zero), np.float32(0)), max_code) - zero
                    error = weight[i] - offset * scale
                    loss += error * error * share[i]
                if loss < least:
                    least, found = loss, grid
            best[row, group] = found
