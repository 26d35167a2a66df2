"""Data parallelism: every process trains on some of each step's windows. All processes read the same windows.

Started by `torchrun` or `accelerate launch`; with one process, every function returns its argument.
"""

from typing import TypeVar

import torch
import torch.distributed as dist

from compress.core.distributed import first, place
from compress.distill.text.packing import Batch

T = TypeVar("T")


def share(batch: Batch) -> Batch:
    """This process's windows of a step: every n-th window, as many as in the other processes.

    Where the number of windows is not divisible, a window is repeated with an empty mask.
    """
    rank, count = place()
    if count == 1:
        return batch
    indices = torch.arange(rank, rank + count * (-(-len(batch.ids) // count)), count)
    valid = indices < len(batch.ids)
    rows = batch.rows(indices.where(valid, torch.zeros_like(indices)))
    return rows._replace(mask=rows.mask & valid[:, None].to(rows.mask.device))


def add_up(sums: dict[str, float], device: torch.device) -> dict[str, float]:
    """The sums of every number over all processes, in all processes."""
    if place()[1] == 1:
        return sums
    total = torch.tensor(list(sums.values()), dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return dict(zip(sums, total.tolist(), strict=True))


def from_first(value: T) -> T:
    """The first process's value, in all processes."""
    return first(lambda: value)
