"""Numbers and texts as HTML. All text from rows is escaped here."""

import html
from collections.abc import Sequence
from typing import Any

from compress.evaluate.drift.cells import Cell

Row = dict[str, Any]
LEFT = ' class="left"'


def esc(value: Any) -> str:
    return html.escape(str(value), quote=True)


def count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def percent(value: float, digits: int = 0) -> str:
    return f"{100 * value:.{digits}f} %"


def cell_html(cell: Cell) -> str:
    """A figure as HTML: errors and second figures small, the interval on a separate line."""
    error = f" <small>± {cell.error}</small>" if cell.error else ""
    small = f" <small>{esc(cell.small)}</small>" if cell.small else ""
    interval = f"<br><small>{cell.interval}</small>" if cell.interval else ""
    return f"{esc(cell.text)}{error}{small}{interval}"


def dot(colour: str) -> str:
    return f'<span class="dot" style="background:{colour}"></span>'


def section(title: str, about: str, *parts: str) -> str:
    """A heading, a paragraph that explains it, and HTML."""
    return f"<h2>{esc(title)}</h2><p>{esc(about)}</p>{''.join(parts)}"


def framed(picture: str, label: str) -> str:
    """A picture with its text for screen readers."""
    return f'<figure role="img" aria-label="{esc(label)}">{picture}</figure>'


def folded(name: str, body: str, *, open_: bool = False, mark: str = "") -> str:
    """A block that folds: `name` is text; `body`, and `mark` before the name, are HTML."""
    return f"<details{' open' if open_ else ''}><summary>{mark}{esc(name)}</summary>{body}</details>"


def table(head: Sequence[str], lines: Sequence[str], *, left: Sequence[str] = (), more: str = "") -> str:
    """A scrolling table: `head` has headings as text, `more` has headings as HTML, `lines` are `<tr>` as HTML."""
    cells = "".join(f"<th{LEFT if name in left else ''}>{esc(name)}</th>" for name in head) + more
    return (
        f'<div class="scroll" tabindex="0"><table><thead><tr>{cells}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def line(name: str, colour: str, cells: Sequence[str], *, note: str | None = None) -> str:
    """A checkpoint's row: coloured name with a small `note` below it, then `<td>` cells as HTML."""
    below = f"<br><small>{esc(note)}</small>" if note else ""
    return f'<tr><th title="{esc(name)}">{dot(colour)}{esc(name)}{below}</th>{"".join(cells)}</tr>'
