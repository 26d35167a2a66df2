"""Several processes on one job: each runs its share of the windows; the first one rounds weights and writes.

`torchrun` or `accelerate launch` starts the processes, and accelerate connects them: over NCCL, with one GPU each, or
over gloo on CPUs. A single process has all windows.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from compress.core.distributed import all_values, first, leave
from compress.core.errors import QCompressError

T = TypeVar("T")
TIMEOUT = timedelta(days=7)  # the other processes wait while the first one rounds or trains


@dataclass(frozen=True)
class Processes:
    """The rank of this process, and the number of all processes of the job."""

    rank: int = 0
    count: int = 1

    def mine(self, parts: Sequence[T]) -> list[T]:
        """The items of `parts` that this process works on."""
        return list(parts[self.rank :: self.count])

    def mean(self, value: Tensor, tokens: int) -> Tensor:
        """The mean over all processes' tokens, in place. `value` is the mean over this process's `tokens` tokens."""
        if self.count == 1:
            return value
        dist.all_reduce(value.mul_(tokens / self.total(tokens)))
        return value

    def total(self, number: int) -> int:
        """The sum of `number` over all processes."""
        return sum(self.gather(number))

    def gather(self, value: T) -> list[T]:
        """The list of `value` from every process, in rank order."""
        return all_values(value)

    def first(self, make: Callable[[], T]) -> T:
        """Call `make` in the first process only. Every process gets the return value or the exception."""
        return first(make)

    def leave(self) -> None:
        """Wait for all processes, then destroy the group. An early leaver would close sockets that others still use."""
        leave()


ALONE = Processes()


def join_processes(device: str = "cpu") -> Processes:
    """Connect the processes that a launcher started. Without a launcher, the job is this single process.

    With the device "cuda", this process takes the GPU with its local rank: "cuda" then means this GPU.
    Raises QCompressError if the machine has fewer GPUs than processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ALONE
    from accelerate import PartialState

    if device == "cuda":
        check_gpus()
    state = PartialState(cpu=device == "cpu", timeout=TIMEOUT)
    return Processes(state.process_index, state.num_processes)


def check_gpus() -> None:
    """Raises QCompressError if the launcher started more processes on this machine than it has GPUs."""
    processes, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if processes > gpus:
        raise QCompressError(
            f"{processes} processes run on this machine, but torch finds {gpus} GPUs; start {gpus} with "
            "--nproc-per-node, or use --device cpu"
        )
