"""Training logs: a JSON-lines file next to the student, and TensorBoard event files.

Logs also contain values that differ from run to run, such as speed. The student's record stores the loss curve only.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from compress.core.atomic import file_errors
from compress.core.errors import QCompressError
from compress.core.file_kind import lines_kind
from compress.core.report import Report, Row

LOG = lines_kind("step", "loss")


def log_path(out: Path) -> Path:
    """The JSON-lines log of the student `out`: loss, speed and remaining time of each step. Later runs append to it."""
    return out.with_name(f"{out.name}.distill.jsonl")


@contextmanager
def logged(report: Report, out: Path, log_dir: str | None) -> Iterator[Report]:
    """A report function that calls `report` and also logs each row that has a loss.

    Rows go to the log of `out`, and to event files in `log_dir` if it is set. Raises QCompressError if `log_dir` is set
    but TensorBoard is not installed, or if another program wrote a file with the log's name.
    """
    LOG.check(log_path(out))
    writer = open_writer(log_dir) if log_dir else None

    def write(row: Row) -> None:
        report(row)
        if "loss" not in row:
            return
        with file_errors(log_path(out)), log_path(out).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        if writer is not None:
            write_scalars(writer, row)

    try:
        yield write
    finally:
        if writer is not None:
            writer.close()


def open_writer(log_dir: str) -> Any:
    """A writer of TensorBoard event files."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise QCompressError("--log-dir: the package tensorboard is missing; pip install 'qcompress[train]'") from None
    return SummaryWriter(log_dir)


def write_scalars(writer: Any, row: Row) -> None:
    """Write every number of a step's row. The stage's name, if any, precedes the number's name."""
    step, stage = int(str(row["step"]).partition("/")[0]), row.get("stage")
    for name, value in row.items():
        if isinstance(value, int | float) and name != "eta":
            writer.add_scalar(f"{stage}/{name}" if stage else name, value, step)
