"""Functions of all runners; the peers' environments have no qcompress."""

import resource


def peak_bytes() -> int:
    """Peak resident memory of this process, in bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
