"""Outputs of a linear do not know of one another: each core solves a share of them, from the grid to the last sweep.

Threads that come together for every product and every loop wait for one another longer than they work on a group of
columns. So here a core has its own products too, and cores come together once per linear.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import torch
from torch import Tensor

from compress.core.grid import QuantizedWeight, join_rows
from compress.model.malloc import one_heap

LARGEST = 2**24  # numbers of a share, 12 bytes each while it is solved
T = TypeVar("T")


def each_share(solve: Callable[[slice], QuantizedWeight], weight: Tensor) -> QuantizedWeight:
    """`solve` of slices that make up the outputs of a weight (out, in), rows joined. A GPU solves all at once.

    Another number of cores makes other slices, whose products may turn ties. Gradients are off, which every thread must
    say for itself.
    """
    outputs, inputs = weight.shape
    if weight.device.type != "cpu":
        return solve(slice(0, outputs))
    threads = torch.get_num_threads()
    turns = -(-outputs // (threads * max(1, LARGEST // inputs)))  # as many for every core
    size = -(-outputs // (threads * turns))
    torch.set_num_threads(1)  # MKL's number is everybody's, OpenMP's each thread's own
    try:
        shares = [slice(start, min(start + size, outputs)) for start in range(0, outputs, size)]
        return join_rows(list(workers(threads).map(torch.no_grad()(solve), shares)))
    finally:
        torch.set_num_threads(threads)


@cache
def workers(count: int) -> ThreadPoolExecutor:
    one_heap()
    return ThreadPoolExecutor(count, "qcompress-share", initializer=torch.set_num_threads, initargs=(1,))
