"""Numbers and texts as HTML. Everything that comes from a row passes through here."""

import html
from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]
LEFT = ' class="left"'


def esc(value: Any) -> str:
    return html.escape(str(value), quote=True)


def count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def percent(value: float, digits: int = 0) -> str:
    return f"{100 * value:.{digits}f} %"


def megabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def plus_minus(row: Row, key: str, digits: int) -> str:
    error = row[f"{key}_se"]
    return f"{row[key]:.{digits}f}" + ("" if error is None else f" <small>± {error:.{digits}f}</small>")


def interval(row: Row, key: str, digits: int) -> str:
    """The row's 95 % interval on a line of its own, "" where there is none."""
    low, high = row.get(f"{key}_low"), row.get(f"{key}_high")
    return "" if low is None or high is None else f"<br><small>{low:.{digits}f} to {high:.{digits}f}</small>"


def dot(colour: str) -> str:
    return f'<span class="dot" style="background:{colour}"></span>'


def section(title: str, about: str, *parts: str) -> str:
    """A heading, one line in grey below it, and HTML."""
    return f"<h2>{esc(title)}</h2><p>{esc(about)}</p>{''.join(parts)}"


def framed(picture: str, label: str) -> str:
    """A picture with the words that stand for it where it cannot be seen."""
    return f'<figure role="img" aria-label="{esc(label)}">{picture}</figure>'


def folded(name: str, body: str, *, open_: bool = False, mark: str = "") -> str:
    """A block that opens: `name` is text; `body`, and `mark` before the name, are HTML."""
    return f"<details{' open' if open_ else ''}><summary>{mark}{esc(name)}</summary>{body}</details>"


def table(head: Sequence[str], lines: Sequence[str], *, left: Sequence[str] = (), more: str = "") -> str:
    """A table that scrolls in its own box: headings as text and `more` of them as HTML, lines as HTML of a `<tr>`."""
    cells = "".join(f"<th{LEFT if name in left else ''}>{esc(name)}</th>" for name in head) + more
    return (
        f'<div class="scroll" tabindex="0"><table><thead><tr>{cells}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def line(name: str, colour: str, cells: Sequence[str], *, note: str | None = None) -> str:
    """A checkpoint's line: its name with its colour and a small `note` below it, then `<td>` cells as HTML."""
    below = f"<br><small>{esc(note)}</small>" if note else ""
    return f'<tr><th title="{esc(name)}">{dot(colour)}{esc(name)}{below}</th>{"".join(cells)}</tr>'
