"""Choose the dtypes of a model: of its matrix products on a CPU, and of all its values on a GPU.

On a CPU, a block computes everything but matrix products in float32. Inputs and weights are rounded before the product.
Sums are float32, and the output is rounded once. On a CPU with bfloat16 instructions this takes half the time. The
error is far below that of 4-bit weights. On a GPU, a model runs in the dtype of its checkpoint.
"""

from contextlib import AbstractContextManager

import torch

from compress.core.device import has_bfloat16
from compress.model.families import find_family


def fastest_matmul_dtype() -> torch.dtype:
    """bfloat16 on a CPU with AVX-512 BF16 or AMX, else float32."""
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if fast else torch.float32


def matmul_in(dtype: torch.dtype, device: str = "cpu") -> AbstractContextManager[None]:
    """Context in which the matrix products of a device type use `dtype`. Contexts can be nested; greenlets share them.

    float32 ends the contexts around it.
    """
    return torch.autocast(device, dtype, enabled=dtype != torch.float32)


def gpu_dtype(stored: torch.dtype, model_type: str) -> torch.dtype:
    """The dtype in which a GPU runs a model whose weights are `stored` in this dtype: the same one, if it can.

    A GPU without bfloat16 instructions runs a bfloat16 model in float16. Families whose activations overflow float16
    get bfloat16 instead of float16, or float32 on such a GPU.
    """
    family = find_family(model_type)
    wide = torch.bfloat16 if has_bfloat16() else torch.float32
    if stored == torch.float32 or (stored == torch.bfloat16 and has_bfloat16()):
        return stored
    return torch.float16 if family is None or family.float16 else wide


def rough_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of a GPU's products of statistics, for a model that runs in `dtype`.

    The range of bfloat16 is that of float32, but the numbers of a Hessian overflow float16.
    """
    return torch.bfloat16 if dtype != torch.float32 and has_bfloat16() else torch.float32
