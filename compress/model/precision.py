"""In which type a CPU takes a block's matrix products; whatever else a block computes stays in float32.

Inputs and weights are rounded as they are multiplied, sums are float32, and what comes out is rounded once: twice as
fast where a processor multiplies bfloat16 by itself, and far below what 4 bits cost.
"""

from contextlib import AbstractContextManager

import torch


def fastest_matmul_dtype() -> torch.dtype:
    """bfloat16 where this CPU multiplies it faster than float32 (AVX-512 BF16, AMX), else float32."""
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if fast else torch.float32


def matmul_in(dtype: torch.dtype) -> AbstractContextManager[None]:
    """While open, a CPU's products are taken in `dtype`, whatever their factors are. Contexts may lie in one another;
    greenlets share them."""
    return torch.autocast("cpu", dtype, enabled=dtype != torch.float32)
