"""What a training tells while it runs, for later: JSON lines beside the student, and TensorBoard's event files.

Both hold what no two runs agree on, such as speed; the loss curve itself is in the student's record.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from compress.core.errors import QCompressError

Row = dict[str, Any]
Report = Callable[[Row], None]


def log_path(out: Path) -> Path:
    """Every step with loss, speed and time to go, as JSON lines, of all runs that it took."""
    return out.with_name(f"{out.name}.distill.jsonl")


@contextmanager
def logged(report: Report, out: Path, log_dir: str | None) -> Iterator[Report]:
    """`report`, which also writes rows with a loss beside `out` and, where one is given, into `log_dir`.

    QCompressError when `log_dir` is given and TensorBoard is not installed.
    """
    writer = open_writer(log_dir) if log_dir else None

    def tell(row: Row) -> None:
        report(row)
        if "loss" not in row:
            return
        with log_path(out).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        if writer is not None:
            write_scalars(writer, row)

    try:
        yield tell
    finally:
        if writer is not None:
            writer.close()


def open_writer(log_dir: str) -> Any:
    """TensorBoard's writer of event files."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise QCompressError("log_dir: needs tensorboard; pip install 'qcompress[train]'") from None
    return SummaryWriter(log_dir)


def write_scalars(writer: Any, row: Row) -> None:
    """Every number of a step, under its stage's name where there is one."""
    step, stage = int(str(row["step"]).partition("/")[0]), row.get("stage")
    for name, value in row.items():
        if isinstance(value, int | float) and name != "eta":
            writer.add_scalar(f"{stage}/{name}" if stage else name, value, step)
