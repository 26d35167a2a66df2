"""Work that one of several processes does for all of them."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

T = TypeVar("T")


def first(make: Callable[[], T], rank: int, count: int) -> T:
    """What `make` returns or raises in the first of `count` processes, in all of them; the others wait for it."""
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
