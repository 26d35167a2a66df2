"""The picture of size against KL, and the table with all figures of a comparison."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from compress.core.rows import CompareRow
from compress.core.units import format_bytes
from compress.evaluate.drift.cells import FIGURES, cells, columns
from compress.evaluate.report.html import (
    LEFT,
    cell_html,
    framed,
    line,
    section,
    table,
)
from compress.evaluate.report.plots import INK, MUTE, Picture, log_ticks, render, series, short
from compress.evaluate.report.report_data import ReportData, css_colour

AGREEMENTS = ("top1", "top5")
MIDDLE = 0.47  # names are right of points up to this share of the widest size, else left
LOWEST = 1e-7  # the smallest KL that a log axis shows


def size_picture(data: ReportData) -> Picture:
    """Size against KL, and the distribution of KL over tokens."""
    number, draw = len(data.candidates), partial(draw_drift, rows=data.rows, limits=data.limits)
    return Picture(draw, max(4.4, 1.2 + 0.45 * number), 5.2 + 0.6 * number, "drift")


def size_section(data: ReportData) -> str:
    """The section with the picture of sizes and KLs."""
    about = (
        "Size against KL: lower is closer to the reference, left is smaller. Bars are two standard errors, with "
        "windows as the sampling unit. KL per token: a line from the median to the 99th percentile, with ticks at the "
        "median, the 95th and the 99th percentile, and a dot at the mean."
    )
    if {"max_size", "max_kl"} & data.limits.keys():
        about += " Dashed lines are limits; the grey area is beyond a limit."
    words = "Size in megabytes against KL divergence from the reference, one point per checkpoint"
    return section("Size and drift", about, framed(render(size_picture(data)), words))


def figures_section(data: ReportData) -> str:
    """The section with the table of all figures."""
    about = (
        "± is one standard error; below it is the 95 % interval from resampling windows. Bits per weight count the "
        "quantized linears; the small figure counts all parameters. Perplexity ratio: candidate over reference. KL is "
        "KL(reference ‖ candidate) per token. Top-1 agreement: both models have the same most likely next token. "
        "Top-5: the reference's most likely token is in the candidate's top 5."
    )
    if data.teacher is not None:
        about += f" KL from teacher: KL(teacher ‖ checkpoint), the teacher is {data.teacher['name']}."
    names = columns(data.rows)
    teachers = 0 if data.teacher is None else 1
    lines = [table_line(number - teachers, row, data, names) for number, row in enumerate(data.table_rows)]
    return section("All figures", about, table(["checkpoint", *names], lines, left=["method"]))


def table_line(index: int, row: CompareRow, data: ReportData, names: Sequence[str]) -> str:
    """The table row of one checkpoint. `index` -1 is the teacher.

    With several candidates, the best value of a column is bold.
    """
    line_cells = []
    for name in names:
        cell = cells(row)[name]
        bold = len(data.rows) > 2 and index > 0 and is_best(row, FIGURES[name].best, data.candidates)
        kind = LEFT if name == "method" else ' class="best"' if bold else ""
        line_cells.append(f"<td{kind}>{'' if cell is None else cell_html(cell)}</td>")
    return line(row["name"], css_colour(max(index, 0)), line_cells)


def is_best(row: CompareRow, key: str | None, rows: Sequence[CompareRow]) -> bool:
    """Whether a row has the best value of a key: the highest for agreement, the lowest for all other keys."""
    if key is None:
        return False
    values: list[Any] = [dict(other)[key] for other in rows]
    return bool(dict(row)[key] == (max(values) if key in AGREEMENTS else min(values)))


def draw_drift(figure: Figure, narrow: bool, rows: Sequence[CompareRow], limits: Mapping[str, Any]) -> None:
    """Draw two panels: size against KL, and the distribution of KL over tokens."""
    shape: dict[str, Any] = (
        {"nrows": 2, "height_ratios": (4, 1 + 0.5 * len(rows))} if narrow else {"ncols": 2, "width_ratios": (3, 2)}
    )
    size, spread = figure.subplots(**shape)
    size_against_kl(size, rows[0], rows[1:], limits)
    kl_spread(spread, rows[1:])


def size_against_kl(
    axes: Axes, reference: CompareRow, candidates: Sequence[CompareRow], limits: Mapping[str, Any]
) -> None:
    """Draw a point per candidate and a diamond for the reference. The area beyond a limit is shaded."""
    max_size, max_kl = limits.get("max_size"), limits.get("max_kl")
    for index, row in enumerate(candidates):
        error = 2 * (row["kl_se"] or 0)
        axes.errorbar(row["bytes"] / 1e6, row["kl"], error, fmt="o", ms=8, capsize=3, color=series(index))
    axes.plot(reference["bytes"] / 1e6, 0, "D", ms=8, color=MUTE, clip_on=False, zorder=5)
    top = max(*(row["kl"] + 2 * (row["kl_se"] or 0) for row in candidates), max_kl or 0) or 1e-6
    right = max(*(row["bytes"] for row in (reference, *candidates)), max_size or 0) / 1e6
    axes.set(
        xlim=(0, 1.12 * right),
        ylim=(0, 1.15 * top),
        xlabel="size, MB",
        title="KL divergence, nats per token",
    )
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    if max_size:
        draw_budget(axes, max_size / 1e6, 1.12 * right, 1.15 * top)
    if max_kl:
        axes.axhspan(max_kl, 1.15 * top, color=MUTE, alpha=0.12, lw=0)
        axes.axhline(max_kl, color=INK, lw=1.3, ls=(0, (4, 3)))
        axes.annotate(f"limit {max_kl:g}", (0, max_kl), (6, 4), textcoords="offset points", fontsize=9)
    label_points(axes, candidates, top, right)
    axes.annotate(
        short(reference["name"]),
        (reference["bytes"] / 1e6, 0),
        xytext=(0, 10),
        textcoords="offset points",
        ha="right" if reference["bytes"] / 1e6 > 0.5 * right else "left",
        color=MUTE,
    )


def draw_budget(axes: Axes, budget: float, right: float, top: float) -> None:
    """Draw the size limit in MB: a dashed line, a shaded area beyond it, and a label on the side with more room."""
    axes.axvspan(budget, right, color=MUTE, alpha=0.12, lw=0)
    axes.axvline(budget, color=INK, lw=1.3, ls=(0, (4, 3)))
    left = budget > 0.5 * right
    axes.annotate(
        f"limit {format_bytes(round(budget * 1e6))}",
        (budget, top),
        xytext=(-6 if left else 6, -12),
        textcoords="offset points",
        ha="right" if left else "left",
        va="center",
        fontsize=9,
    )


def label_points(axes: Axes, candidates: Sequence[CompareRow], top: float, right: float) -> None:
    """Write the names beside the points, in their colours, in one column per side. Thin lines lead to the points."""
    points = [(row["bytes"] / 1e6 / right, row["kl"] / top) for row in candidates]
    heights = spread_labels([y for _, y in points], 0.085, highest=1.1)
    after = max((x for x, _ in points if x <= MIDDLE), default=0.0) + 0.04
    before = min((x for x, _ in points if x > MIDDLE), default=1.0) - 0.04
    for index, ((x, kl), y, row) in enumerate(zip(points, heights, candidates, strict=True)):
        axes.annotate(
            short(row["name"]),
            (x * right, kl * top),
            xytext=((after if x <= MIDDLE else before) * right, y * top),
            arrowprops={"arrowstyle": "-", "color": series(index), "alpha": 0.5, "lw": 1},
            ha="left" if x <= MIDDLE else "right",
            va="center",
            color=series(index),
            fontsize=9,
        )


def spread_labels(heights: Sequence[float], gap: float, highest: float = math.inf) -> list[float]:
    """The vertical positions of labels, moved so that neighbours are at least `gap` apart. Their order stays.

    Labels move up, and those that would then lie above `highest` move down.
    """
    moved, last = list(heights), -math.inf
    order = sorted(range(len(heights)), key=heights.__getitem__)
    for index in order:
        last = moved[index] = max(heights[index], last + gap)
    for index in reversed(order):
        moved[index] = min(moved[index], highest)
        highest = moved[index] - gap
    return moved


def kl_spread(axes: Axes, candidates: Sequence[CompareRow]) -> None:
    """Draw median, mean, 95th and 99th percentile of the KL per token, a line per candidate, on a log axis."""
    for index, row in enumerate(candidates):
        place, colour = len(candidates) - 1 - index, series(index)
        low, p95, p99 = (max(value, LOWEST) for value in (row["kl_median"], row["kl_p95"], row["kl_p99"]))
        axes.plot([low, p99], [place, place], "-", color=colour, alpha=0.35, lw=5, solid_capstyle="round")
        axes.plot([low, p95, p99], [place] * 3, "|", color=colour, ms=11, mew=2)
        axes.plot(max(row["kl"], LOWEST), place, "o", color=colour, ms=8)
    axes.set(xscale="log", ylim=(-0.6, len(candidates) - 0.2), title="KL per token, nats")
    axes.set_yticks([])
    log_ticks(axes, "x")
    for index, row in enumerate(candidates):
        place = len(candidates) - 1 - index
        axes.annotate(
            short(row["name"]),
            (0, place),
            xycoords=axes.get_yaxis_transform(),
            xytext=(2, 8),
            textcoords="offset points",
            va="bottom",
            fontsize=9,
        )
