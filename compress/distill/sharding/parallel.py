"""Data parallelism: in each step, each process trains on a part of the windows.

`torchrun` or `accelerate launch` starts the processes. All processes read the same text. With one process, every
function here returns its argument.
"""

from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from compress.core.distributed import first, place
from compress.distill.text.packing import Batch

T = TypeVar("T")


def share(batch: Batch) -> Batch:
    """This process's windows of a step: with n processes, every n-th window.

    All processes get the same number of windows. A process with one window too few gets a copy of the first window,
    with an empty mask.
    """
    rank, count = place()
    if count == 1:
        return batch
    indices = torch.arange(rank, rank + count * (-(-len(batch.ids) // count)), count)
    valid = indices < len(batch.ids)
    rows = batch.rows(indices.where(valid, torch.zeros_like(indices)))
    return rows._replace(mask=rows.mask & valid[:, None].to(rows.mask.device))


def add_up(sums: dict[str, Tensor]) -> dict[str, float]:
    """Each scalar, summed over all processes. All processes get the sums. The host waits for a GPU once."""
    total = torch.stack([value.double() for value in sums.values()])
    if place()[1] > 1:
        dist.all_reduce(total)
    return dict(zip(sums, total.tolist(), strict=True))


def from_first(value: T) -> T:
    """The value of the first process. All processes get it."""
    return first(lambda: value)
