"""Quantize slices of a linear's rows on several cores at once. This is possible because outputs are independent.

Each core solves its slice with one thread, from the grid to the last sweep. If threads shared every matrix product
instead, they would wait for each other longer than they compute.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch
from torch import Tensor

from compress.core.grid import QuantizedWeight, join_rows
from compress.model.malloc import one_heap

MAX_NUMBERS = 2**24  # weights in a slice; solving a slice takes 12 bytes per weight


def solve_in_parallel(solve: Callable[[slice], QuantizedWeight], weight: Tensor) -> QuantizedWeight:
    """Apply `solve` to slices of a weight's rows (out, in) and join the results. A GPU solves all rows at once.

    The number of cores changes the slices. This may change how a value halfway between two codes is rounded.
    """
    if weight.device.type != "cpu":
        return solve(slice(0, len(weight)))
    threads = torch.get_num_threads()
    slices = row_slices(weight, threads)
    torch.set_num_threads(1)  # for MKL, whose setting is global; OpenMP's is per thread, and `workers` sets it
    try:
        return join_rows(list(workers(threads).map(torch.no_grad()(solve), slices)))  # no_grad is per thread
    finally:
        torch.set_num_threads(threads)


def row_slices(weight: Tensor, cores: int) -> list[slice]:
    """Split the rows into equal slices, the same number for each core. A slice has at most MAX_NUMBERS weights."""
    out_features, in_features = weight.shape
    per_core = -(-out_features // (cores * max(1, MAX_NUMBERS // in_features)))
    rows = -(-out_features // (cores * per_core))
    return [slice(start, min(start + rows, out_features)) for start in range(0, out_features, rows)]


@cache
def workers(count: int) -> ThreadPoolExecutor:
    one_heap()
    return ThreadPoolExecutor(count, "qcompress-rows", initializer=torch.set_num_threads, initargs=(1,))
