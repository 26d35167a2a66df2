"""The section with scores and KL of the compared checkpoints over time, from the history."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Literal, cast

from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure

from compress.core.rows import CompareRow, TrendRow
from compress.evaluate.report.html import framed, legend, section
from compress.evaluate.report.plots import MUTE, Picture, render, series, short
from compress.evaluate.report.report_data import ReportData

Value = Literal["score", "kl"]
LINES: dict[Value, str] = {"score": "Task score, 0 to 100, mean over kinds", "kl": "KL divergence, nats per token"}
SCALES: dict[Value, float] = {"score": 100.0, "kl": 1.0}
Points = list[tuple[datetime, float, str | None]]  # time, value, tag


def trend_section(data: ReportData) -> str:
    """The section as HTML, or "" if no checkpoint has two verdicts."""
    values = {key: points_by_name(data, key) for key in LINES}
    drawn = {key: lines for key, lines in values.items() if any(len(points) > 1 for points in lines.values())}
    if not drawn:
        return ""
    draw = partial(draw_trend, drawn=drawn, names=[row["name"] for row in data.candidates])
    picture = render(Picture(draw, 3.4, 3.2 * len(drawn), "trend"))
    about = (
        "All stored verdicts on checkpoints with these names. A checkpoint's files may have changed between verdicts."
    )
    return section("Over time", about, framed(picture, "Scores and KL of every verdict over time", legend(data.names)))


def trend_rows(verdicts: Sequence[Mapping[str, Any]], compared: Sequence[CompareRow]) -> list[TrendRow]:
    """The scores and KLs that a history stores for the compared candidates."""
    names = {row["name"] for row in compared[1:]}
    keys = ("time", "command", "tag", "name", "digest", "kind", *LINES)
    return [
        cast("TrendRow", {key: row[key] for key in keys if row.get(key) is not None})
        for row in verdicts
        if row.get("name") in names
        and row.get("kind", "all") == "all"
        and any(row.get(key) is not None for key in LINES)
    ]


def points_by_name(data: ReportData, key: Value) -> dict[str, Points]:
    """For each candidate, the values of `key` over time."""
    points: dict[str, Points] = {row["name"]: [] for row in data.candidates}
    for row in data.history:
        if row["name"] in points and key in row:
            points[row["name"]].append((datetime.fromisoformat(row["time"]), SCALES[key] * row[key], row.get("tag")))
    return points


def draw_trend(figure: Figure, narrow: bool, drawn: Mapping[Value, Mapping[str, Points]], names: Sequence[str]) -> None:
    """Draw one panel per key of `drawn`, with a line per candidate. A tag is the label of its point."""
    shape: dict[str, Any] = {"nrows": len(drawn)} if narrow else {"ncols": len(drawn)}
    grid = figure.subplots(**shape, squeeze=False)
    for axes, (key, lines) in zip(grid.flat, drawn.items(), strict=True):
        for name, points in lines.items():
            draw_line(axes, points, series(names.index(name)), short(name))
        locator = AutoDateLocator(minticks=2, maxticks=5)
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
        highest = max(value for points in lines.values() for _, value, _ in points)
        axes.set(title=LINES[key], ylim=(0, 1.2 * highest or None))
        axes.margins(x=0.08)


def draw_line(axes: Axes, points: Points, colour: str, label: str) -> None:
    if not points:
        return
    times, values, tags = zip(*points, strict=True)
    axes.plot(times, values, "o-", color=colour, ms=5, lw=1.6, label=label)
    for time, value, tag in zip(times, values, tags, strict=True):
        if tag:
            axes.annotate(
                short(tag), (time, value), (0, 8), textcoords="offset points", fontsize=8, color=MUTE, ha="center"
            )
