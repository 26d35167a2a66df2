"""Several processes on one job: each runs its share of the windows; the first one rounds weights and writes.

`torchrun` or `accelerate launch` starts them, accelerate joins them. In a single process all methods are no-ops.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch.distributed as dist
from torch import Tensor

from compress.core.distributed import all_values, first, leave

T = TypeVar("T")
TIMEOUT = timedelta(days=7)  # the other processes wait while the first one rounds or trains


@dataclass(frozen=True)
class Processes:
    """The rank of this process, and the number of processes."""

    rank: int = 0
    count: int = 1

    def mine(self, parts: Sequence[T]) -> list[T]:
        """The micro-batches of this process."""
        return list(parts[self.rank :: self.count])

    def mean(self, value: Tensor, tokens: int) -> Tensor:
        """The mean over all processes' tokens, in place; `value` is the mean over the `tokens` of this process."""
        if self.count == 1:
            return value
        dist.all_reduce(value.mul_(tokens / self.total(tokens)))
        return value

    def total(self, number: int) -> int:
        """The sum of the number over all processes."""
        return sum(self.gather(number))

    def gather(self, value: T) -> list[T]:
        """The values of all processes, in rank order."""
        return all_values(value)

    def first(self, make: Callable[[], T]) -> T:
        """Call `make` in the first process only; every process gets its return value or exception."""
        return first(make)

    def leave(self) -> None:
        """Barrier, then destroy the group: a rank that leaves early closes sockets the others still use."""
        leave()


ALONE = Processes()


def join_processes() -> Processes:
    """The processes of a launcher, joined; a single process without one."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ALONE
    from accelerate import PartialState

    state = PartialState(cpu=True, timeout=TIMEOUT)
    return Processes(state.process_index, state.num_processes)
