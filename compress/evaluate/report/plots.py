"""Plots of report rows as inline SVG, in two widths, with the fonts and the colours of the page.

Plots are drawn in placeholder colours. CSS variables replace these, so a plot follows the page's light or dark style.
Equal rows give equal bytes.
"""

import io
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

Row = dict[str, Any]
Draw = Callable[[Figure, bool], None]
LONGEST = 22  # characters of the longest name in a picture
WIDE, NARROW = 9.6, 4.8  # widths of the two SVGs in inches of 72 points
SERIES = tuple(f"#0000{number:02x}" for number in range(1, 9))  # placeholders, see COLOURS
INK, MUTE, LINE, BAD = "#0000a1", "#0000a2", "#0000a3", "#0000a4"
COLOURS = {INK: "--ink", MUTE: "--mute", LINE: "--line", BAD: "--bad"} | {
    code: f"--s{i}" for i, code in enumerate(SERIES)
}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTE,
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTE,
    "ytick.labelcolor": MUTE,
    "text.color": INK,
    "figure.constrained_layout.use": True,
}


def css(colour: str) -> str:
    """The CSS colour of a placeholder."""
    return f"var({COLOURS[colour]})"


def series(index: int) -> str:
    """The placeholder colour of the candidate with this index."""
    return SERIES[index % len(SERIES)]


@dataclass(frozen=True)
class Picture:
    """A function that draws a picture, and the picture's height in inches for each of its two widths.

    `name` must be unique on the page.
    """

    draw: Draw
    height: float
    narrow_height: float
    name: str


def render(picture: Picture) -> str:
    """The picture as HTML in two widths; CSS shows one of them."""
    return "".join(
        f'<div class="{kind}">{one_svg(picture.draw, kind == "narrow", size, f"{picture.name}-{kind}")}</div>'
        for kind, size in (("wide", (WIDE, picture.height)), ("narrow", (NARROW, picture.narrow_height)))
    )


def one_svg(draw: Draw, narrow: bool, size: tuple[float, float], salt: str) -> str:
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    with rc_context({**STYLE, "svg.hashsalt": salt}):
        figure = Figure(figsize=size, dpi=72)
        draw(figure, narrow)
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    for code in COLOURS:
        svg = svg.replace(code, css(code))
    return svg.replace("<svg ", '<svg aria-hidden="true" ', 1)


def short(name: str) -> str:
    return name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"


def log_ticks(axes: Axes, which: str) -> None:
    """Place ticks at about five powers of ten, such as 0.01. A short axis also has ticks between them."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = axes.get_xlim() if which == "x" else axes.get_ylim()
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    step = max(1, -(-(last - first) // 4))
    within = (1, 1.5, 2, 3, 4, 5, 6, 8) if high / low < 5 else (1, 2, 5) if high / low < 100 else (1,)
    axis.set_major_locator(FixedLocator([m * 10.0**power for power in range(first, last + 1, step) for m in within]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())
    (axes.set_xlim if which == "x" else axes.set_ylim)(low, high)
