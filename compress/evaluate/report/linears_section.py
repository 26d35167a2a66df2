"""Two sections from the checkpoints' records: the error of each linear, and the loss curve of a distillation."""

from collections.abc import Sequence
from functools import partial

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from compress.core.rows import CompareRow
from compress.evaluate.drift.cells import with_error
from compress.evaluate.report.html import Row, count, folded, framed, legend, section
from compress.evaluate.report.plots import INK, LINE, MUTE, Picture, css, log_ticks, render, series, short
from compress.evaluate.report.report_data import ReportData, series_of

CURVES = {
    "loss": "training loss",
    "kl": "KL",
    "ce": "cross-entropy",
    "eval_kl": "KL on evaluation text",
}


def linear_rows(row: CompareRow) -> list[Row]:
    """The errors of linears in a checkpoint's record, or [] if the record has none."""
    keys = ("block", "linear", "error", "rtn_error")
    return [one for one in row["record"].get("rows") or () if all(key in one for key in keys)]


def linears_section(data: ReportData) -> str:
    """The section with the error of every linear. Candidates made by plain rounding are left out."""
    parts: list[str] = []
    for index, row in sorted(enumerate(data.candidates), key=lambda pair: pair[1]["kl"]):
        errors = linear_rows(row)
        gains = sorted(r["error"] / r["rtn_error"] for r in errors if r["rtn_error"] > 0)
        if gains and any(r["error"] != r["rtn_error"] for r in errors):
            lines = -(-len({r["linear"] for r in errors}) // 4)
            draw = partial(draw_linears, rows=errors, colour=series(index))
            picture = render(Picture(draw, 1.9 * lines + 0.4, 3.4 * lines + 0.4, f"linears{index}"))
            words = f"<p>Median over linears: {gains[len(gains) // 2]:.2f} × the error of plain rounding.</p>"
            body = words + framed(picture, "Error of every linear, by block")
            parts.append(folded(row["name"], body, open_=not parts))
    about = (
        "Squared output error over squared output of each linear, by block. The dashed line is plain rounding; the "
        "coloured area below it is the gain."
    )
    return section("Error of each linear", about, *parts) if parts else ""


def training_section(data: ReportData) -> str:
    """The section with each distilled checkpoint: loss curve, and KL to the teacher before and after training."""
    parts = []
    for index, row in enumerate(data.rows):
        curve = [step for step in row["record"].get("loss") or () if "step" in step and "loss" in step]
        if curve:
            colour = series(max(series_of(index), 0))
            draw = partial(draw_loss, curve=curve, colour=colour)
            picture = render(Picture(draw, 3.2, 3.4, f"loss{index}"))
            shown = framed(picture, "Loss over the steps of distillation", legend(curve_names(curve, colour)))
            parts.append(section(f"Distillation of {row['name']}", gain(row["record"]), shown))
    return "".join(parts)


def gain(record: Row) -> str:
    """A sentence with the KL to the teacher before and after training, or else with the number of steps."""
    result = next((row for row in record.get("rows") or () if {"kl_before", "kl_after", "factor"} <= row.keys()), None)
    if result is None:
        return f"{count(len(record['loss']), 'step')} recorded."
    before, after = (with_error(result[key], result.get(f"{key}_se"), 3) for key in ("kl_before", "kl_after"))
    tokens = f", {count(result['tokens_scored'], 'scored token')}" if "tokens_scored" in result else ""
    return f"KL divergence from the teacher on evaluation text{tokens}: {before} nats before, {after} after."


def draw_linears(figure: Figure, narrow: bool, rows: Sequence[Row], colour: str) -> None:
    """Draw one panel per kind of linear: its error by block, and the error of plain rounding."""
    kinds = list(dict.fromkeys(row["linear"] for row in rows))
    blocks = list(dict.fromkeys(row["block"] for row in rows))
    columns = min(len(kinds), 2 if narrow else 4)
    grid = figure.subplots(-(-len(kinds) // columns), columns, sharex=True, sharey=True, squeeze=False)
    for axes, kind in zip(grid.flat, kinds, strict=False):
        by_block = {row["block"]: row for row in rows if row["linear"] == kind}
        x = [index for index, block in enumerate(blocks) if block in by_block]
        errors, plain = ([max(by_block[blocks[i]][key], 1e-12) for i in x] for key in ("error", "rtn_error"))
        axes.fill_between(x, errors, plain, color=colour, alpha=0.22, lw=0)
        axes.plot(x, plain, color=MUTE, lw=1.2, ls=(0, (3, 2)))
        axes.plot(x, errors, color=colour, lw=2)
        axes.set(yscale="log", title=kind.rpartition(".")[2])
    for axes in grid.flat[len(kinds) :]:
        axes.set_axis_off()
    log_ticks(grid[0][0], "y")
    for axes in grid[-1]:
        axes.set_xlabel("block")
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))


def draw_loss(figure: Figure, narrow: bool, curve: Sequence[Row], colour: str) -> None:
    """Draw loss, KL, cross-entropy and evaluation KL over the steps."""
    axes = figure.subplots()
    for key, style in styles(colour).items():
        points = curve_points(curve, key)
        if points:
            axes.plot(*zip(*points, strict=True), **style)
    axes.set(xlabel="step", title="Loss, nats per token", ylim=(0, None))
    for step, stage in stage_borders(curve):
        axes.axvline(step - 0.5, color=LINE, lw=1)
        axes.annotate(
            f" {short(stage)}", (step - 0.5, 0.02), xycoords=axes.get_xaxis_transform(), color=MUTE, fontsize=9
        )
    axes.xaxis.set_major_locator(MaxNLocator(4 if narrow else 8, integer=True))


def styles(colour: str) -> dict[str, Row]:
    """The line style of each curve, by key. `colour` is that of the loss."""
    return {
        "loss": {"color": colour, "lw": 2.2},
        "kl": {"color": series(1), "lw": 1.4},
        "ce": {"color": MUTE, "lw": 1.4},
        "eval_kl": {"color": INK, "lw": 0, "marker": "o", "ms": 6},
    }


def curve_points(curve: Sequence[Row], key: str) -> list[tuple[int, float]]:
    """The (step, value) pairs of one curve."""
    return [(row["step"], row[key]) for row in curve if isinstance(row.get(key), int | float)]


def curve_names(curve: Sequence[Row], colour: str) -> list[tuple[str, str]]:
    """(CSS colour, name) of every curve that is drawn."""
    drawn = {key: style for key, style in styles(colour).items() if curve_points(curve, key)}
    return [(css(style["color"]), CURVES[key]) for key, style in drawn.items()]


def stage_borders(curve: Sequence[Row]) -> list[tuple[int, str]]:
    """The first step and the name of each stage, or [] if the run had no stages."""
    first: dict[str, int] = {}
    for row in curve:
        if row.get("stage"):
            first.setdefault(row["stage"], row["step"])
    return [(step, stage) for stage, step in first.items()]
