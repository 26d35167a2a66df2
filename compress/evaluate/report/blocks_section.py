"""Which block departs: each alone on the reference's inputs, as `compare --locate` measured it."""

from collections.abc import Sequence
from functools import partial

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from compress.evaluate.drift.limits import outliers
from compress.evaluate.report.html import Row, dot, esc, framed, section
from compress.evaluate.report.plots import BAD, MUTE, log_ticks, render, series, short
from compress.evaluate.report.report_data import ReportData, css_colour

LEAST = 1e-9


def blocks_section(data: ReportData) -> str:
    if not any(row.get("blocks") for row in data.candidates):
        return ""
    about = (
        "Every block alone, fed with what the reference's block is fed: what it adds too much or too little (gain), "
        "and how much of it is wrong (error). Rounding scatters around a gain of one; a ring marks what stands out."
    )
    draw = partial(draw_blocks, candidates=data.candidates)
    picture = render(draw, height=3.4, narrow_height=6.0, name="blocks")
    told = "".join(verdict(data, index) for index in range(1, len(data.rows)))
    return section("Which block departs", about, framed(picture, "Gain and error of every block"), f"<ul>{told}</ul>")


def verdict(data: ReportData, index: int) -> str:
    """A line for a candidate: the blocks that stand out with their figures and worst linear, or that none does."""
    row = data.rows[index]
    if not row.get("blocks"):
        return ""
    found = [esc(describe(block)) for block in outliers(row)]
    words = f'<b class="bad">{"; ".join(found)}</b>' if found else "no block stands out"
    return f"<li>{dot(css_colour(index))}{esc(row['name'])}: {words}</li>"


def describe(block: Row) -> str:
    """The worst linear is the one that alone stands out, or has the most error over what was recorded for all."""
    linears = block.get("linears") or ()
    recorded = all(row["recorded"] for row in linears)
    worst = max(linears, key=lambda row: row["error"] / (row["recorded"] if recorded else 1), default=None)
    worst = next((row for row in linears if row["name"] == block.get("linear")), worst)
    told = f"block {block['block']} has gain {block['gain']:.3f} and error {block['error']:.4f}"
    return told if worst is None else f"{told}, most in {worst['name']}"


def draw_blocks(figure: Figure, narrow: bool, candidates: Sequence[Row]) -> None:
    """Gain and error of every block, a line per candidate, rings around what stands out."""
    gain, error = figure.subplots(nrows=2) if narrow else figure.subplots(ncols=2)
    for index, row in enumerate(candidates):
        blocks = row.get("blocks") or []
        draw_line(gain, blocks, "gain", series(index), short(row["name"]))
        draw_line(error, blocks, "error", series(index), short(row["name"]))
    gain.axhline(1, color=MUTE, lw=1, ls=(0, (3, 2)), zorder=0)
    gain.set(title="gain of what a block adds")
    error.set(title="error of what a block adds", yscale="log")
    log_ticks(error, "y")
    for axes in (gain, error):
        axes.set_xlabel("block")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    error.legend(frameon=False, fontsize=9)


def draw_line(axes: Axes, blocks: Sequence[Row], key: str, colour: str, label: str) -> None:
    """One candidate's figure over its blocks."""
    if blocks:
        x, y = ([block["block"] for block in blocks], [max(block[key], LEAST) for block in blocks])
        axes.plot(x, y, color=colour, lw=1.8, label=label)
        out = [place for place, block in enumerate(blocks) if block["outlier"]]
        axes.plot([x[i] for i in out], [y[i] for i in out], "o", ms=13, mfc="none", mec=BAD, mew=2)
