"""What all runners need, in environments that have nothing of ours."""

import resource


def peak_bytes() -> int:
    """The most memory that this process ever had resident."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
