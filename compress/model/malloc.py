"""What a decoder block keeps to go back through it, from its config alone; and giving back what is freed."""

import ctypes
import sys
from functools import cache
from typing import Any

M_ARENA_MAX = -8  # of malloc.h


def block_numbers(config: dict[str, Any]) -> int:
    """Numbers per token that autograd keeps of a llama's block: counted by saved_tensors_hooks, to 5 %.

    The residual, its norms and what the linears read are 8 widths; queries, keys and values, repeated for all heads,
    and what they make are 2 more of all heads; gate, its silu, up and their product.
    """
    width, heads = int(config["hidden_size"]), int(config.get("num_attention_heads") or 1)
    head = int(config.get("head_dim") or width // heads)
    return 8 * width + 2 * heads * head + 4 * int(config["intermediate_size"])


def release_memory() -> None:
    """Return the memory of tensors that are gone to the system.

    glibc keeps what was smaller than 32 MB, and a loop over blocks scatters new tensors over it. Other C libraries are
    left alone.
    """
    if trim := from_libc("malloc_trim"):
        trim(0)


def one_heap() -> None:
    """Threads that begin to allocate after this share the heap of those before, instead of keeping what they free in
    heaps of their own."""
    if limit := from_libc("mallopt"):
        limit(M_ARENA_MAX, 1)


@cache
def from_libc(name: str) -> Any:
    """A function of Linux's C library by name, None where there is none."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
