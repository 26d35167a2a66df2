"""Quantize slices of a linear's rows on several cores at once: its outputs are independent.

Each core solves its slice from the grid to the last sweep with one thread. Threads that share every matrix product
would spend more time waiting for each other than computing one group of columns.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch
from torch import Tensor

from compress.core.grid import QuantizedWeight, join_rows
from compress.model.malloc import one_heap

MAX_NUMBERS = 2**24  # weights in a slice; solving one takes 12 bytes per weight


def solve_in_parallel(solve: Callable[[slice], QuantizedWeight], weight: Tensor) -> QuantizedWeight:
    """Apply `solve` to slices of the rows of a weight (out, in) and join the results. A GPU solves all rows at once.

    The number of cores changes the slices, and so may change how a tie is rounded.
    """
    if weight.device.type != "cpu":
        return solve(slice(0, len(weight)))
    threads = torch.get_num_threads()
    slices = row_slices(weight, threads)
    torch.set_num_threads(1)  # MKL's setting is global; OpenMP's is per thread and set in `workers`
    try:
        return join_rows(list(workers(threads).map(torch.no_grad()(solve), slices)))  # no_grad is per thread
    finally:
        torch.set_num_threads(threads)


def row_slices(weight: Tensor, cores: int) -> list[slice]:
    """Equal slices of rows, at most MAX_NUMBERS weights each, the same number of slices for each core."""
    out_features, in_features = weight.shape
    per_core = -(-out_features // (cores * max(1, MAX_NUMBERS // in_features)))
    rows = -(-out_features // (cores * per_core))
    return [slice(start, min(start + rows, out_features)) for start in range(0, out_features, rows)]


@cache
def workers(count: int) -> ThreadPoolExecutor:
    one_heap()
    return ThreadPoolExecutor(count, "qcompress-rows", initializer=torch.set_num_threads, initargs=(1,))
