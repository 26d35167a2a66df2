"""Choose the dtype of a block's matrix products on a CPU. A block computes everything else in float32.

Inputs and weights are rounded before the product. Sums are float32, and the output is rounded once. On a CPU with
bfloat16 instructions this takes half the time. The error is far below that of 4-bit weights.
"""

from contextlib import AbstractContextManager

import torch


def fastest_matmul_dtype() -> torch.dtype:
    """bfloat16 on a CPU with AVX-512 BF16 or AMX, else float32."""
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if fast else torch.float32


def matmul_in(dtype: torch.dtype) -> AbstractContextManager[None]:
    """Context in which a CPU's matrix products use `dtype`. Contexts can be nested; greenlets share them."""
    return torch.autocast("cpu", dtype, enabled=dtype != torch.float32)
