"""The log file beside a quantized checkpoint: seconds and errors of every block and linear, as JSON lines.

Seconds differ between runs, so they are not stored in the checkpoint.
"""

from pathlib import Path

from compress.core.file_kind import lines_kind

LOG = lines_kind("block", "error", "rtn_error")


def log_path(out: Path) -> Path:
    """The log file of the checkpoint `out`."""
    return out.with_name(f"{out.name}.quantize.jsonl")
