"""Progress of a job: rows of plain values, passed to one function."""

from collections.abc import Callable
from typing import Any

Row = dict[str, Any]
Report = Callable[[Row], None]


def silent(row: Row) -> None:
    """Ignore a row."""
