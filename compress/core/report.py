"""Progress of a job. A job passes rows of plain values to a `Report` function."""

from collections.abc import Callable
from typing import Any

Row = dict[str, Any]
Report = Callable[[Row], None]


def silent(row: Row) -> None:
    """A `Report` that ignores every row."""
