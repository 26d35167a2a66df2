"""Tables as Markdown: the first row is the head."""

import datetime
from collections.abc import Iterable, Sequence
from typing import Any

from compress.serve.documents.content import MOST_CELLS


class TableText:
    """Collects tables as Markdown, with at most MOST_CELLS cells in all. `notes` state what is missing."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.notes: list[str] = []
        self.room = MOST_CELLS

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def add(self, rows: Iterable[Sequence[Any]], title: str = "") -> None:
        """Append a table. Empty rows are left out, and so are empty columns at the right."""
        table, kept = [], 0
        for row in rows:
            cells = [cell_text(cell) for cell in row]
            if not any(cells):
                continue
            kept += len(cells)
            if kept > self.room:
                self.notes = [f"only the first {MOST_CELLS:,} cells were read"]
                break
            table.append(cells)
        self.room -= min(kept, self.room)
        self.lines += ([f"## {title}", ""] if title else []) + markdown(table) + [""]


def markdown(rows: list[list[str]]) -> list[str]:
    """The lines of a Markdown table. Short rows are filled up."""
    width = max((last_filled(row) for row in rows), default=0)
    lines = [f"| {' | '.join((row + [''] * width)[:width])} |" for row in rows]
    return lines[:1] + ([f"|{'---|' * width}"] if rows else []) + lines[1:]


def last_filled(row: list[str]) -> int:
    """The number of cells up to the last one with text."""
    return max((place for place, cell in enumerate(row, 1) if cell), default=0)


def cell_text(value: Any) -> str:
    """A cell on one line. Whole numbers have no decimals, and dates are in ISO format."""
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat().removesuffix("T00:00:00")
    return " ".join(str(value).split()).replace("|", "\\|")
