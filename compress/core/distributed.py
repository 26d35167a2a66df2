"""Helpers for several processes of one job, started by torchrun or accelerate. A single process may call them too."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

T = TypeVar("T")


def place() -> tuple[int, int]:
    """The rank of this process, and the number of all processes."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def first(make: Callable[[], T]) -> T:
    """Call `make` in the first process only. Every process gets the return value or the exception."""
    rank, count = place()
    if count == 1:
        return make()
    outcome: list[Any] = [None, None]
    if rank == 0:
        try:
            outcome[0] = make()
        except Exception as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]  # type: ignore[no-any-return]


def all_values(value: T) -> list[T]:
    """The values of all processes, in rank order. Every process gets the whole list."""
    count = place()[1]
    if count == 1:
        return [value]
    values: list[Any] = [None] * count
    dist.all_gather_object(values, value)
    return values


def leave() -> None:
    """Wait for all processes, then destroy the group. An early leaver would close sockets that others still use."""
    if place()[1] > 1:
        dist.barrier()
        dist.destroy_process_group()
