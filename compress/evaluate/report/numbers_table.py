"""Size against KL as a picture, and the table of all figures of `compare_rows`."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from compress.evaluate.report.html import (
    LEFT,
    Row,
    esc,
    framed,
    interval,
    line,
    megabytes,
    percent,
    plus_minus,
    section,
    table,
)
from compress.evaluate.report.plots import INK, MUTE, log_ticks, render, series, short
from compress.evaluate.report.report_data import ReportData, css_colour

Cell = Callable[[Row], str]
COLUMNS: dict[str, tuple[str | None, Cell]] = {  # heading: key whose least (or greatest, of SHARES) is bold, cell
    "made by": (None, lambda row: f"{esc(row['method'] or '–')} <small>{esc(row['format'])}</small>"),
    "size": ("bytes", lambda row: megabytes(row["bytes"])),
    "bits": (None, lambda row: f"{row['bits_per_weight']:.2f} <small>{row['bits_per_parameter']:.2f}</small>"),
    "perplexity": (None, lambda row: plus_minus(row, "perplexity", 2)),
    "ratio": (None, lambda row: plus_minus(row, "perplexity_ratio", 3) + interval(row, "perplexity_ratio", 3)),
    "KL": ("kl", lambda row: plus_minus(row, "kl", 4) + interval(row, "kl", 3)),
    "KL p99": (None, lambda row: f"{row['kl_p99']:.3f}"),
    "top-1": ("top1", lambda row: percent(row["top1"], 1)),
    "top-5": ("top5", lambda row: percent(row["top5"], 1)),
}
SHARES = ("top1", "top5")
OF_CANDIDATES = ("ratio", "KL", "KL p99", "top-1", "top-5")  # what the reference is to itself says nothing


def size_section(data: ReportData) -> str:
    number = len(data.candidates)
    draw = partial(draw_drift, rows=data.rows, limits=data.limits)
    picture = render(draw, height=4.4, narrow_height=6.6 + 0.2 * number, name="drift")
    about = (
        "Down is closer to the reference, left is smaller. Bars are two standard errors, with windows as the sampling "
        "unit. Dashed are the limits."
    )
    words = "Size in megabytes against KL to the reference for every checkpoint"
    return section("Size against drift", about, framed(picture, words))


def figures_section(data: ReportData) -> str:
    about = (
        "± is one standard error, below it the 95 % interval from redrawing windows. Bits are per weight of the "
        "quantized linears, then per parameter of the whole model. KL is KL(reference ‖ candidate) in nats per token; "
        "top-1 is how often both would say the same next token, top-5 how often the reference's is among the "
        "candidate's five."
    )
    lines = [table_line(index, data.rows) for index in range(len(data.rows))]
    return section("All figures", about, table(["checkpoint", *COLUMNS], lines, left=["made by"]))


def table_line(index: int, rows: Sequence[Row]) -> str:
    """A checkpoint's line; the best value of a column is bold where there are several candidates."""
    row, cells = rows[index], []
    for name, (key, cell) in COLUMNS.items():
        best = len(rows) > 2 and index > 0 and key is not None and row[key] == best_of(key, rows[1:])
        kind = LEFT if name == "made by" else ' class="best"' if best else ""
        cells.append(f"<td{kind}>{'' if index == 0 and name in OF_CANDIDATES else cell(row)}</td>")
    return line(row["name"], css_colour(index), cells)


def best_of(key: str, rows: Sequence[Row]) -> float:
    return (max if key in SHARES else min)(row[key] for row in rows)


def draw_drift(figure: Figure, narrow: bool, rows: Sequence[Row], limits: Mapping[str, Any]) -> None:
    """Size against KL, and how KL is spread over the tokens."""
    shape: dict[str, Any] = {"nrows": 2, "height_ratios": (3, 2)} if narrow else {"ncols": 2, "width_ratios": (3, 2)}
    size, spread = figure.subplots(**shape)
    size_against_kl(size, rows[0], rows[1:], limits)
    kl_spread(spread, rows[1:])


def size_against_kl(axes: Axes, reference: Row, candidates: Sequence[Row], limits: Mapping[str, Any]) -> None:
    """A point for every candidate, the reference as a diamond, and everything beyond a limit shaded."""
    max_size, max_kl = limits.get("max_size"), limits.get("max_kl")
    for index, row in enumerate(candidates):
        error = 2 * (row["kl_se"] or 0)
        axes.errorbar(row["bytes"] / 1e6, row["kl"], error, fmt="o", ms=8, capsize=3, color=series(index))
    axes.plot(reference["bytes"] / 1e6, 0, "D", ms=8, color=MUTE, clip_on=False, zorder=5)
    top = max(*(row["kl"] + 2 * (row["kl_se"] or 0) for row in candidates), max_kl or 0) or 1e-6
    right = max(*(row["bytes"] for row in (reference, *candidates)), max_size or 0) / 1e6
    axes.set(
        xlim=(0, 1.12 * right), ylim=(0, 1.15 * top), xlabel="size, MB", title="KL to the reference, nats per token"
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
    """The budget as a dashed line, what lies beyond it shaded; the words stand on the roomier side. In MB."""
    axes.axvspan(budget, right, color=MUTE, alpha=0.12, lw=0)
    axes.axvline(budget, color=INK, lw=1.3, ls=(0, (4, 3)))
    left = budget > 0.5 * right
    axes.annotate(
        f"budget {megabytes(round(budget * 1e6))}",
        (budget, top),
        xytext=(-6 if left else 6, -12),
        textcoords="offset points",
        ha="right" if left else "left",
        va="center",
        fontsize=9,
    )


def label_points(axes: Axes, candidates: Sequence[Row], top: float, right: float) -> None:
    points = [(row["bytes"] / 1e6 / right, row["kl"] / top) for row in candidates]
    heights = spread_labels([y for _, y in points], 0.085)
    for (x, _), y, row in zip(points, heights, candidates, strict=True):
        left = x > 0.55
        axes.annotate(
            short(row["name"]),
            (x * right, y * top),
            xytext=(-12 if left else 12, 0),
            textcoords="offset points",
            ha="right" if left else "left",
            va="center",
        )


def spread_labels(heights: Sequence[float], gap: float) -> list[float]:
    """The heights, moved up where two would be closer than `gap`; their order is kept."""
    moved, last = list(heights), -math.inf
    for index in sorted(range(len(heights)), key=heights.__getitem__):
        last = moved[index] = max(heights[index], last + gap)
    return moved


def kl_spread(axes: Axes, candidates: Sequence[Row]) -> None:
    """One line per candidate: median, mean, 95th and 99th percentile of the KL, on a log axis."""
    floor = 1e-7
    for index, row in enumerate(candidates):
        place, colour = len(candidates) - 1 - index, series(index)
        low, p95, p99 = (max(row[key], floor) for key in ("kl_median", "kl_p95", "kl_p99"))
        axes.plot([low, p99], [place, place], "-", color=colour, alpha=0.35, lw=5, solid_capstyle="round")
        axes.plot([low, p95, p99], [place] * 3, "|", color=colour, ms=11, mew=2)
        axes.plot(max(row["kl"], floor), place, "o", color=colour, ms=8)
    axes.set(xscale="log", ylim=(-0.6, len(candidates) - 0.4), title="Spread: median │ mean ● 95 % │ 99 % │")
    axes.set_yticks([])
    log_ticks(axes, "x")
    axes.set_xlabel("nats")
    for index, row in enumerate(candidates):
        place = len(candidates) - 1 - index
        axes.annotate(
            short(row["name"]),
            (max(row["kl_median"], floor), place),
            xytext=(0, 10),
            textcoords="offset points",
            va="bottom",
            fontsize=9,
        )
