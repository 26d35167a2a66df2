"""Asked before the work: is there enough memory?"""

from pathlib import Path

import psutil

from compress.core.errors import QCompressError


def check_memory(what: str | Path, needed: int, cure: str = "fewer or shorter windows, or a larger machine") -> None:
    """QCompressError when a job on `what` will need more bytes than the machine has available; `cure` needs less."""
    available = psutil.virtual_memory().available
    if needed > available:
        raise QCompressError(
            f"{what}: needs about {needed / 1e9:.1f} GB of memory, {available / 1e9:.1f} GB are available; use {cure}"
        )
