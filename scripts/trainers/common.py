"""Functions that all runners use. It imports no qcompress, because the environments of other tools do not have it."""

import resource


def peak_bytes() -> int:
    """The peak resident memory of this process, in bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
