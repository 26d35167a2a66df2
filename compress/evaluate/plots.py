"""Report rows as inline SVG that follows the page: its fonts, its light and dark colours, two widths.

Colours are drawn as placeholders and become CSS variables. The same rows always give the same bytes.
"""

import io
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

Row = dict[str, Any]
Draw = Callable[[Figure, bool], None]
LONGEST = 26  # characters of a name in a picture
WIDE, NARROW = 9.6, 4.8  # inches at 72 dots: the widths of the two SVGs, in points
SERIES = tuple(f"#0000{number:02x}" for number in range(1, 8))  # placeholders, see COLOURS
INK, MUTE, LINE = "#0000a1", "#0000a2", "#0000a3"
COLOURS = {INK: "--ink", MUTE: "--mute", LINE: "--line"} | {code: f"--s{i}" for i, code in enumerate(SERIES)}
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


def series(index: int) -> str:
    """The placeholder colour of the candidate with this index."""
    return SERIES[index % len(SERIES)]


def render(draw: Draw, *, height: float, narrow_height: float, name: str) -> str:
    """`draw` at both widths (heights in inches), as HTML; the page shows one of them. `name` keeps their ids apart."""
    return "".join(
        f'<div class="{kind}">{one_svg(draw, kind == "narrow", size, f"{name}-{kind}")}</div>'
        for kind, size in (("wide", (WIDE, height)), ("narrow", (NARROW, narrow_height)))
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
    for code, variable in COLOURS.items():
        svg = svg.replace(code, f"var({variable})")
    return svg.replace("<svg ", '<svg aria-hidden="true" ', 1)


def draw_drift(figure: Figure, narrow: bool, rows: Sequence[Row]) -> None:
    """Size against KL, and how KL is spread over the tokens."""
    shape: dict[str, Any] = {"nrows": 2, "height_ratios": (3, 2)} if narrow else {"ncols": 2, "width_ratios": (3, 2)}
    size, spread = figure.subplots(**shape)
    candidates = [row for row in rows if row["role"] == "candidate"]
    size_against_kl(size, rows[0], candidates)
    kl_spread(spread, candidates)


def size_against_kl(axes: Axes, reference: Row, candidates: Sequence[Row]) -> None:
    for index, row in enumerate(candidates):
        error = 2 * (row["kl_se"] or 0)
        axes.errorbar(row["bytes"] / 1e6, row["kl"], error, fmt="o", ms=8, capsize=3, color=series(index))
    axes.plot(reference["bytes"] / 1e6, 0, "D", ms=8, color=MUTE, clip_on=False, zorder=5)
    top = max(row["kl"] + 2 * (row["kl_se"] or 0) for row in candidates) or 1e-6
    right = max(row["bytes"] for row in (reference, *candidates)) / 1e6
    axes.set(
        xlim=(0, 1.12 * right), ylim=(0, 1.15 * top), xlabel="size, MB", title="KL to the reference, nats per token"
    )
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
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
    axes.annotate(
        short(reference["name"]),
        (reference["bytes"] / 1e6, 0),
        xytext=(0, 10),
        textcoords="offset points",
        ha="right" if reference["bytes"] / 1e6 > 0.5 * right else "left",
        color=MUTE,
    )


def short(name: str) -> str:
    return name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"


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


def log_ticks(axes: Axes, which: str) -> None:
    """Plain decades, 0.01 rather than 10⁻², at most five; twos and fives too where there are few."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = axes.get_xlim() if which == "x" else axes.get_ylim()
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    step = max(1, -(-(last - first) // 4))
    within = (1, 2, 5) if high / low < 100 else (1,)
    axis.set_major_locator(FixedLocator([m * 10.0**power for power in range(first, last + 1, step) for m in within]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())
    (axes.set_xlim if which == "x" else axes.set_ylim)(low, high)


def draw_linears(figure: Figure, narrow: bool, rows: Sequence[Row], colour: str) -> None:
    """A panel per kind of linear: its error in every block, plain rounding's, and what lies between them."""
    kinds = list(dict.fromkeys(row["linear"] for row in rows))
    blocks = list(dict.fromkeys(row["block"] for row in rows))
    columns = min(len(kinds), 2 if narrow else 4)
    grid = figure.subplots(-(-len(kinds) // columns), columns, sharex=True, sharey=True, squeeze=False)
    for axes, kind in zip(grid.flat, kinds, strict=False):
        found = {row["block"]: row for row in rows if row["linear"] == kind}
        x = [index for index, block in enumerate(blocks) if block in found]
        ours, plain = ([max(found[blocks[i]][key], 1e-12) for i in x] for key in ("error", "rtn_error"))
        axes.fill_between(x, ours, plain, color=colour, alpha=0.22, lw=0)
        axes.plot(x, plain, color=MUTE, lw=1.2, ls=(0, (3, 2)))
        axes.plot(x, ours, color=colour, lw=2)
        axes.set(yscale="log", title=kind.rpartition(".")[2])
    for axes in grid.flat[len(kinds) :]:
        axes.set_axis_off()
    log_ticks(grid[0][0], "y")
    for axes in grid[-1]:
        axes.set_xlabel("block")
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))


def draw_loss(figure: Figure, narrow: bool, curve: Sequence[Row], colour: str) -> None:
    """Loss, KL and cross-entropy over the steps; held-out KL where it was measured."""
    axes = figure.subplots()
    styles: dict[str, Row] = {
        "loss": {"color": colour, "lw": 2.2},
        "kl": {"color": series(1), "lw": 1.4},
        "ce": {"color": MUTE, "lw": 1.4},
        "heldout_kl": {"color": INK, "lw": 0, "marker": "o", "ms": 6},
    }
    for key, style in styles.items():
        points = [(row["step"], row[key]) for row in curve if isinstance(row.get(key), int | float)]
        if points:
            axes.plot(*zip(*points, strict=True), label=key.replace("_", " "), **style)
    axes.set(xlabel="step", title="nats per token", ylim=(0, None))
    for step, stage in stage_borders(curve):
        axes.axvline(step - 0.5, color=LINE, lw=1)
        axes.annotate(
            f" {short(stage)}", (step - 0.5, 0.02), xycoords=axes.get_xaxis_transform(), color=MUTE, fontsize=9
        )
    axes.xaxis.set_major_locator(MaxNLocator(4 if narrow else 8, integer=True))
    axes.legend(frameon=False, ncols=4, loc="upper right", handlelength=1.4, columnspacing=1.2, fontsize=9)


def stage_borders(curve: Sequence[Row]) -> list[tuple[int, str]]:
    """The first step of every stage and its name; [] where the curve knows no stages."""
    first: dict[str, int] = {}
    for row in curve:
        if row.get("stage"):
            first.setdefault(row["stage"], row["step"])
    return [(step, stage) for stage, step in first.items()]
