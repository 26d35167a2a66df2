"""Several processes on one training: each takes its share of every step's windows, the first writes and tells.

Started by `torchrun` or `accelerate launch`; alone, everything here does nothing. All processes read the same windows,
so the tokens of a step are counted without job the others.
"""

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist

from compress.core import distributed as together
from compress.distill.text.packing import Batch

T = TypeVar("T")


def place() -> tuple[int, int]:
    """This process's rank, and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def share(batch: Batch) -> Batch:
    """This process's windows of a step: every n-th, as many as any other has.

    Where a step's windows do not divide, one is repeated with nothing in it that counts.
    """
    rank, count = place()
    if count == 1:
        return batch
    places = torch.arange(rank, rank + count * (-(-len(batch.ids) // count)), count)
    there = places < len(batch.ids)
    places = places.where(there, torch.zeros_like(places))
    mine = batch.rows(places)
    return mine._replace(mask=mine.mask & there[:, None].to(mine.mask.device))


def add_up(sums: dict[str, float], device: torch.device) -> dict[str, float]:
    """The sums of all processes' numbers, in all of them."""
    if place()[1] == 1:
        return sums
    total = torch.tensor(list(sums.values()), dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return dict(zip(sums, total.tolist(), strict=True))


def from_first(value: T) -> T:
    """The first process's value, in all of them."""
    return first(lambda: value)


def first(make: Callable[[], T]) -> T:
    """What `make` returns or raises in the first process, in all of them; the others wait for it."""
    return together.first(make, *place())
