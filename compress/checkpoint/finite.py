"""Reject NaN and Inf on load and on save."""

import torch
from torch import Tensor

from calibration.statistics import all_finite
from compress.core.errors import QCompressError


def check_finite(name: str, tensor: Tensor) -> Tensor:
    """The tensor, unchanged. Raises QCompressError, beginning with `name`, if a value is NaN or infinite."""
    if tensor.is_floating_point() and not all_finite(tensor):
        raise QCompressError(f"{name}: NaN or infinite values; the checkpoint is damaged, fetch it again")
    return tensor


def cast_finite(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """`tensor` in `dtype`. Raises QCompressError if a value is not finite before or after the cast."""
    cast = check_finite(name, tensor).to(dtype)
    if cast.is_floating_point() and not all_finite(cast):
        raise QCompressError(f"{name}: {tensor.abs().max().item():.6g} overflows {dtype}; use --dtype bfloat16")
    return cast
