"""Check the available memory before a job starts."""

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
