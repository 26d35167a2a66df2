"""Memory of a block's backward pass, estimated from its config; and returning freed memory to the system."""

import ctypes
import sys
from functools import cache
from typing import Any

M_ARENA_MAX = -8  # from malloc.h


def saved_numbers(config: dict[str, Any]) -> int:
    """How many numbers per token autograd saves in one llama block, within 5 % of a count by saved_tensors_hooks.

    The terms are: residual stream, norms and inputs of linears (8 hidden sizes); attention (2 per head channel); gate,
    its silu, up and their product (4 intermediate sizes).
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
    """Make all later threads allocate from one heap, so that one thread can reuse what another has freed."""
    if limit := from_libc("mallopt"):
        limit(M_ARENA_MAX, 1)


@cache
def from_libc(name: str) -> Any:
    """A function of Linux's C library; None if it does not exist."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
