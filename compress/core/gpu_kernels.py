"""Whether the loops over columns run as Triton kernels. torch's wheels for CUDA and ROCm contain Triton."""

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch


@cache
def triton_kernels() -> Any:
    """The module `triton_kernels`, or None where Triton is not installed or torch is not built for a GPU."""
    built = torch.version.cuda or torch.version.hip
    return import_module("compress.core.triton_kernels") if built and find_spec("triton") else None
