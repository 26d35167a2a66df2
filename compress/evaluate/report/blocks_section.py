"""The section "Drift by block". `compare --locate` measures each block alone, on the reference's inputs."""

from collections.abc import Sequence
from functools import partial
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from compress.core.rows import BlockRow, CompareRow
from compress.evaluate.drift.limits import outliers
from compress.evaluate.report.html import dot, esc, framed, legend, section
from compress.evaluate.report.plots import BAD, MUTE, Picture, log_ticks, render, series, short
from compress.evaluate.report.report_data import ReportData, css_colour

FLOOR = 1e-9  # the smallest value that a log axis shows


def blocks_section(data: ReportData) -> str:
    if not any(row.get("blocks") for row in data.candidates):
        return ""
    about = (
        "Each block ran alone on the reference's inputs. Gain is the size of its update relative to the reference's: "
        "1 is exact. Error is the squared difference relative to the squared update. A ring marks an outlier: a block "
        "whose weights are probably damaged."
    )
    draw = partial(draw_blocks, candidates=data.candidates)
    picture = render(Picture(draw, 3.4, 6.0, "blocks"))
    lines = "".join(verdict(data, index) for index in range(1, len(data.rows)))
    return section(
        "Drift by block",
        about,
        framed(picture, "Gain and error of every block", legend(data.names)),
        f"<ul>{lines}</ul>",
    )


def verdict(data: ReportData, index: int) -> str:
    """A line for one candidate: its outlier blocks with their figures, or the words "no outlier"."""
    row = data.rows[index]
    if not row.get("blocks"):
        return ""
    blocks = [esc(describe(block)) for block in outliers(row)]
    words = f'<b class="bad">{"; ".join(blocks)}</b>' if blocks else "no outlier"
    return f"<li>{dot(css_colour(index))}{esc(row['name'])}: {words}</li>"


def describe(block: BlockRow) -> str:
    """A block's gain, error and worst linear.

    If exactly one linear is an outlier, that is the worst linear. Otherwise it is the linear with the largest ratio of
    its error to its recorded error.
    """
    linears = block.get("linears") or ()
    recorded = all(row["recorded"] for row in linears)
    worst = max(linears, key=lambda row: row["error"] / ((recorded and row["recorded"]) or 1), default=None)
    worst = next((row for row in linears if row["name"] == block.get("linear")), worst)
    text = f"block {block['block']} has gain {block['gain']:.3f} and error {block['error']:.4f}"
    return text if worst is None else f"{text}, mostly from {worst['name']}"


def draw_blocks(figure: Figure, narrow: bool, candidates: Sequence[CompareRow]) -> None:
    """Draw gain and error by block: a line per candidate, with rings around outliers."""
    gain, error = figure.subplots(nrows=2) if narrow else figure.subplots(ncols=2)
    for index, row in enumerate(candidates):
        blocks = row.get("blocks") or []
        draw_line(gain, blocks, "gain", series(index), short(row["name"]))
        draw_line(error, blocks, "error", series(index), short(row["name"]))
    gain.axhline(1, color=MUTE, lw=1, ls=(0, (3, 2)), zorder=0)
    gain.set(title="Gain (1 is exact)")
    error.set(title="Error (squared, relative)", yscale="log")
    log_ticks(error, "y")
    for axes in (gain, error):
        axes.set_xlabel("block")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))


def draw_line(axes: Axes, blocks: Sequence[BlockRow], key: Literal["gain", "error"], colour: str, label: str) -> None:
    """Draw the gain or the error of one candidate's blocks."""
    if blocks:
        x, y = ([block["block"] for block in blocks], [max(block[key], FLOOR) for block in blocks])
        axes.plot(x, y, color=colour, lw=1.8, label=label)
        marked = [place for place, block in enumerate(blocks) if block["outlier"]]
        axes.plot([x[i] for i in marked], [y[i] for i in marked], "o", ms=13, mfc="none", mec=BAD, mew=2)
