"""Loops that go column after column or range after range, compiled for the CPU.

In torch every column costs several calls, each longer than its arithmetic. Numba compiles these loops when they are
first called, in about two seconds, and keeps them. Outputs are independent of one another: every thread has its own,
TILE of them at a time in its cache, so neither splits nor threads change a result. Names, shapes and results are those
of the torch loops that serve other devices: `round_block` of gptq.py, `move_codes` and `settle` of refine.py,
`best_grid` of grid.py.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

TILE = 64  # outputs: 64 columns of them are 16 KiB
LINE = 16  # outputs in a cache line, which no two threads shall write


def compiled(**options: Any) -> Callable[..., Any]:
    """Compile a function once per machine, or once per process where no place is writable."""

    def compile_it(function: Callable[..., None]) -> Any:
        try:
            return numba.njit(nogil=True, error_model="numpy", cache=True, **options)(function)
        except RuntimeError:
            return numba.njit(nogil=True, error_model="numpy", **options)(function)

    return compile_it


def round_block(columns: Tensor, scales: Tensor, zeros: Tensor, rows: Tensor, max_code: int) -> tuple[Tensor, Tensor]:
    offsets, errors = torch.empty_like(columns), torch.empty_like(columns)
    each_thread(round_tiles, columns.shape[1], columns, scales, zeros, rows, np.float32(max_code), offsets, errors)
    return offsets, errors


def move_codes(
    codes: Tensor, gradient: Tensor, hessian: Tensor, energy: Tensor, scales: Tensor, zeros: Tensor, max_code: int
) -> tuple[Tensor, Tensor, Tensor]:
    moved, slope, curvature = torch.empty_like(gradient), torch.empty_like(scales), torch.empty_like(scales)
    given = (codes, gradient, hessian, energy.reciprocal(), scales, zeros, np.float32(max_code))
    each_thread(move_tiles, len(scales), *given, moved, slope, curvature)
    return moved, slope, curvature


def settle(error: Tensor, codes: Tensor, moved: Tensor, old: Tensor, new: Tensor, zeros: Tensor) -> None:
    assert error.is_contiguous() and codes.is_contiguous()  # of anything else a copy would be written
    each_thread(settle_tiles, len(old), error, codes, moved, old, new, zeros)


def best_grid(grouped: Tensor, importance: Tensor, scales: Tensor, zeros: Tensor, max_code: int) -> Tensor:
    best = torch.empty(grouped.shape[:2], dtype=torch.int64)
    each_thread(try_grids, len(grouped), grouped, importance, scales, zeros, np.float32(max_code), best)
    return best


def each_thread(kernel: Callable[..., None], outputs: int, *arguments: Any) -> None:
    """Call `kernel(*arguments, first, last)` for a share of the outputs in each of torch's threads."""
    arrays = [part.contiguous().numpy() if isinstance(part, Tensor) else part for part in arguments]
    share = LINE * -(-outputs // (LINE * torch.get_num_threads()))
    bounds = [(first, min(first + share, outputs)) for first in range(0, outputs, share)]
    *others, own = [(*arrays, *bound) for bound in bounds]
    waiting = [threads().submit(kernel, *given) for given in others]
    kernel(*own)
    for other in waiting:
        other.result()


@cache
def threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="qcompress-kernel")


# Only loops with one array to write and few to read, all cut to length, become vectors.


@compiled()
def round_tiles(columns, scales, zeros, rows, max_code, offsets, errors, first, last):  # type: ignore[no-untyped-def]
    size = len(columns)
    left = np.zeros((size, TILE), np.float32)
    error = np.zeros(TILE, np.float32)
    for start in range(first, last, TILE):
        stop = min(start + TILE, last)
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
    codes, gradient, hessian, inverse, scales, zeros, max_code, moved, slope, curvature, first, last
):
    size = len(codes)
    steps, sums = np.zeros((size, TILE), np.float32), np.zeros((size, TILE), np.float32)
    old, new, change, product = np.zeros((4, TILE), np.float32)
    for start in range(first, last, TILE):
        stop = min(start + TILE, last)
        width = stop - start
        scale, zero = scales[start:stop], zeros[start:stop]
        rise, bend = slope[start:stop], curvature[start:stop]
        rise[:] = 0
        bend[:] = 0
        sums[:] = 0
        for i in range(size):
            own, given = steps[i], gradient[i, start:stop]
            for t in range(width):
                own[t] = given[t] / scale[t]
        for i in range(size):
            own, code, factor = steps[i], codes[i, start:stop], inverse[i]
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
                rise[t] += new[t] * own[t] + change[t] * product[t]
            for t in range(width):
                bend[t] += new[t] * (product[t] + before[t])
            moved[i, start:stop] = new[:width]
            for j in range(i + 1, size):
                later, behind, share = steps[j], sums[j], hessian[i, j]
                for t in range(TILE):
                    later[t] += share * change[t]
                for t in range(TILE):
                    behind[t] += share * new[t]
        for t in range(width):
            rise[t] *= scale[t]


@compiled()
def settle_tiles(error, codes, moved, old, new, zeros, first, last):  # type: ignore[no-untyped-def]
    before, after, zero = old[first:last], new[first:last], zeros[first:last]
    for i in range(len(codes)):
        off, code, offset = error[i, first:last], codes[i, first:last], moved[i, first:last]
        for t in range(last - first):
            off[t] += offset[t] * after[t] - (np.float32(code[t]) - zero[t]) * before[t]
        for t in range(last - first):
            code[t] = np.uint8(offset[t] + zero[t])


@compiled(fastmath={"reassoc", "nsz"})  # a sum becomes vectors in another order
def try_grids(grouped, importance, scales, zeros, max_code, best, first, last):  # type: ignore[no-untyped-def]
    size = grouped.shape[2]
    for row in range(first, last):
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
