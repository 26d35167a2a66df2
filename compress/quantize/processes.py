"""Several processes on one job: each runs its share of the windows, the first solves, writes and tells the others.

Started by `torchrun` or `accelerate launch`, joined through accelerate; alone, everything here does nothing.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor

from compress.core import distributed as together

T = TypeVar("T")
PATIENCE = timedelta(days=7)  # the others wait while the first solves, or trains


@dataclass(frozen=True)
class Processes:
    """This process's `rank` among `count`."""

    rank: int = 0
    count: int = 1

    def mine(self, parts: Sequence[T]) -> list[T]:
        """This process's share of the micro-batches."""
        return list(parts[self.rank :: self.count])

    def mean(self, value: Tensor, tokens: int) -> Tensor:
        """The mean over all processes' tokens of what is a mean over this one's, in place."""
        if self.count == 1:
            return value
        dist.all_reduce(value.mul_(tokens / self.total(tokens)))
        return value

    def total(self, number: int) -> int:
        """The sum of everyone's number."""
        return sum(self.gather(number))

    def gather(self, value: T) -> list[T]:
        """Everyone's value, in the order of the ranks."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, value)
        return found

    def first(self, make: Callable[[], T]) -> T:
        """What `make` returns or raises in the first process, in all of them; the others wait for it."""
        return together.first(make, self.rank, self.count)

    def leave(self) -> None:
        """Part when all are done: one that goes earlier takes away connections that the others still read."""
        if self.count > 1:
            dist.barrier()
            dist.destroy_process_group()


ALONE = Processes()


def join_processes() -> Processes:
    """The processes that a launcher has started, or this one alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ALONE
    from accelerate import PartialState

    state = PartialState(cpu=True, timeout=PATIENCE)
    return Processes(state.process_index, state.num_processes)
