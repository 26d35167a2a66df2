import psutil
import pytest
import torch

from compress.model.malloc import from_libc, release_memory

COUNT, NUMBERS = 2000, 25_000  # 200 MB in pieces that the C library keeps


@pytest.mark.skipif(from_libc("malloc_trim") is None, reason="this C library returns memory by itself")
def test_release_memory_returns_freed_memory_to_the_system():
    process = psutil.Process()
    tensors = [torch.ones(NUMBERS) for _ in range(COUNT)]
    pinned = tensors[::100]  # live tensors lie between the freed ones
    full = process.memory_info().rss
    del tensors
    release_memory()
    assert full - process.memory_info().rss > 0.8 * 4 * COUNT * NUMBERS
    assert all(bool((tensor == 1).all()) for tensor in pinned)
