"""Estimate the memory of a block's backward pass, and return freed memory to the system."""

import ctypes
import sys
from functools import cache
from typing import Any

M_ARENA_MAX = -8  # from malloc.h


def saved_numbers(config: dict[str, Any]) -> int:
    """The number of values that autograd saves per token in one llama block.

    A count with saved_tensors_hooks differs by less than 5 %. The terms are 8 hidden sizes (residual stream, norms,
    inputs of linears), 2 values per head channel (attention), and 4 intermediate sizes (gate, silu, up, product).
    """
    width, heads = int(config["hidden_size"]), int(config.get("num_attention_heads") or 1)
    head = int(config.get("head_dim") or width // heads)
    return 8 * width + 2 * heads * head + 4 * int(config["intermediate_size"])


def release_memory() -> None:
    """Return the memory of freed tensors to the system.

    glibc keeps freed chunks below 32 MB, and a loop over blocks fragments them. Without glibc this does nothing.
    """
    if trim := from_libc("malloc_trim"):
        trim(0)


def one_heap() -> None:
    """Make all later threads allocate from one heap, so that a thread can reuse memory that another one has freed."""
    if limit := from_libc("mallopt"):
        limit(M_ARENA_MAX, 1)


@cache
def from_libc(name: str) -> Any:
    """The function `name` of Linux's C library. None on other systems, or if the library lacks it."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
