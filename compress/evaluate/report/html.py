"""Numbers and texts as HTML. All text from rows is escaped here."""

import html
from collections.abc import Sequence
from typing import Any

from compress.evaluate.drift.cells import Cell

Row = dict[str, Any]
LEFT = ' class="left"'
FITTING, FITTING_DESKTOP = 3, 11  # columns that a phone and a desktop show


def esc(value: Any) -> str:
    return html.escape(str(value), quote=True)


def count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def percent(value: float, digits: int = 0) -> str:
    return f"{100 * value:.{digits}f} %"


def cell_html(cell: Cell) -> str:
    """A figure as HTML. Standard errors and second figures are small; the interval has a separate line."""
    error = f" <small>± {cell.error}</small>" if cell.error else ""
    small = f" <small>{esc(cell.small)}</small>" if cell.small else ""
    interval = f"<br><small>{cell.interval}</small>" if cell.interval else ""
    return f"{esc(cell.text)}{error}{small}{interval}"


def dot(colour: str) -> str:
    return f'<span class="dot" style="background:{colour}"></span>'


def section(title: str, about: str, *parts: str) -> str:
    """A section as HTML: a heading, a paragraph that explains the section, and further parts."""
    return f"<h2>{esc(title)}</h2><p>{esc(about)}</p>{''.join(parts)}"


def framed(picture: str, label: str, names: str = "") -> str:
    """A picture with a text for screen readers. The `legend` is below the picture, where it covers no point."""
    return f'<figure role="img" aria-label="{esc(label)}">{picture}{names}</figure>'


def legend(names: Sequence[tuple[str, str]]) -> str:
    """The caption of a picture: (CSS colour, name) of every line."""
    entries = "".join(f"<span>{dot(colour)}{esc(name)}</span>" for colour, name in names)
    return f'<figcaption class="legend">{entries}</figcaption>'


def folded(name: str, body: str, *, open_: bool = False, mark: str = "") -> str:
    """A collapsible block. `name` is text. `body` is HTML, and so is `mark`, which stands before the name."""
    return f"<details{' open' if open_ else ''}><summary>{mark}{esc(name)}</summary>{body}</details>"


def table(head: Sequence[str], lines: Sequence[str], *, left: Sequence[str] = (), more: str = "") -> str:
    """A scrolling table. `head` holds headings as text, `more` headings as HTML, and `lines` holds `<tr>` elements.

    Shadows at the edges, and a line of text on a narrow screen, show that the table scrolls.
    """
    number = len(head) + more.count("<th")
    kind = "hint always" if number > FITTING_DESKTOP else "hint"
    hint = f'<p class="{kind}">{number} columns; scroll sideways to see all →</p>' if number > FITTING else ""
    cells = "".join(f"<th{LEFT if name in left else ''}>{esc(name)}</th>" for name in head) + more
    return (
        f'{hint}<div class="scroll" tabindex="0"><table><thead><tr>{cells}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def line(name: str, colour: str, cells: Sequence[str]) -> str:
    """A checkpoint's `<tr>`: its coloured name, then the cells, which are `<td>`."""
    return f'<tr><th title="{esc(name)}">{dot(colour)}{esc(name)}</th>{"".join(cells)}</tr>'
