"""A lower bound for the time of a one-pass GPTQ: its floating point operations divided by this machine's rate.

    forward     2 · tokens · Σ out · in over all linears, and the two products of attention over the causal half
    Hessians    tokens · in² for each stage: half of 2 · tokens · in², because x xᵀ is symmetric

The bound leaves out rounding, so measured seconds divided by this bound show the cost of rounding.
"""

import time
from collections.abc import Iterable
from math import prod

import torch

Shape = tuple[int, int]
REPEATS = 5


def pass_flops(
    linears: Iterable[Shape], stage_inputs: Iterable[int], *, tokens: int, seq_len: int, attention: int
) -> int:
    """The floating point operations of one pass over the blocks.

    `linears` are the shapes (out, in) of all linears in all blocks. `stage_inputs` are the widths of the inputs of all
    stages in all blocks. `attention` is the sum of heads · head_dim over the blocks.
    """
    forward = 2 * tokens * sum(map(prod, linears))
    products = 2 * tokens * seq_len * attention  # scores and values: 2 · 2 · tokens · seq_len / 2
    return forward + products + tokens * sum(width**2 for width in stage_inputs)


@torch.no_grad()
def matmul_rate(shapes: Iterable[Shape], dtype: torch.dtype, tokens: int = 2048) -> float:
    """The operations per second of x Wᵀ in `dtype`, over all these shapes (out, in). The best time of each is used."""
    operations, seconds = 0, 0.0
    for out, inn in set(shapes):
        x, weight, times = torch.randn(tokens, inn, dtype=dtype), torch.randn(out, inn, dtype=dtype), []
        for _ in range(REPEATS):
            started = time.perf_counter()
            x @ weight.T
            times.append(time.perf_counter() - started)
        operations, seconds = operations + 2 * tokens * out * inn, seconds + min(times)
    return operations / seconds
