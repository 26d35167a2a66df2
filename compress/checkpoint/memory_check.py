"""Check the available memory of the machine, or of its GPU, before a job starts."""

from pathlib import Path

import psutil

from compress.core.errors import QCompressError


def check_memory(what: str | Path, needed: int, cure: str = "fewer or shorter windows, or a larger machine") -> None:
    """Raises QCompressError if a job on `what` needs more memory than is available. `cure` names what would help."""
    available = psutil.virtual_memory().available
    if needed > available:
        raise QCompressError(
            f"{what}: needs about {needed / 1e9:.1f} GB of memory, but {available / 1e9:.1f} GB are free; use {cure}"
        )


def check_gpu_memory(what: str | Path, needed: int, cure: str) -> None:
    """Raises QCompressError if a job on `what` needs more memory than the GPU has free. `cure` is what would help."""
    import torch

    free, total = torch.cuda.mem_get_info()
    if needed > free:
        raise QCompressError(
            f"{what}: needs about {needed / 1e9:.1f} GB of GPU memory, but {free / 1e9:.1f} of {total / 1e9:.1f} GB "
            f"are free; {cure}"
        )
