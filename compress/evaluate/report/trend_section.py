"""How the compared checkpoints did over time: every verdict of theirs in the history, as two pictures."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any

from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure

from compress.evaluate.report.html import Row, framed, section
from compress.evaluate.report.plots import MUTE, render, series, short
from compress.evaluate.report.report_data import ReportData

LINES = {"score": "Score on the tasks, mean over the kinds", "kl": "KL to the reference, nats per token"}
Points = list[tuple[datetime, float, str | None]]  # time, value, tag


def trend_section(data: ReportData) -> str:
    """ "" where no checkpoint has been judged twice."""
    found = {key: points_by_name(data, key) for key in LINES}
    drawn = {key: lines for key, lines in found.items() if any(len(points) > 1 for points in lines.values())}
    if not drawn:
        return ""
    picture = render(
        partial(draw_trend, drawn=drawn, names=[row["name"] for row in data.candidates]),
        height=3.4,
        narrow_height=3.2 * len(drawn),
        name="trend",
    )
    about = "Every verdict in the history on a checkpoint of one of these names, whatever bytes it had then."
    return section("Over time", about, framed(picture, "Scores and KL of every verdict over time"))


def trend_rows(verdicts: Sequence[Row], compared: Sequence[Row]) -> list[Row]:
    """The part of a history that the picture needs: the compared candidates' scores and KLs, one short row each."""
    names = {row["name"] for row in compared[1:]}
    keys = ("time", "command", "tag", "name", "digest", "kind", *LINES)
    return [
        {key: row[key] for key in keys if row.get(key) is not None}
        for row in verdicts
        if row.get("name") in names
        and row.get("kind", "all") == "all"
        and any(row.get(key) is not None for key in LINES)
    ]


def points_by_name(data: ReportData, key: str) -> dict[str, Points]:
    """The values of `key` in rows of `trend_rows`, by candidate."""
    found: dict[str, Points] = {row["name"]: [] for row in data.candidates}
    for row in data.history:
        if row["name"] in found and key in row:
            found[row["name"]].append((datetime.fromisoformat(row["time"]), row[key], row.get("tag")))
    return found


def draw_trend(figure: Figure, narrow: bool, drawn: Mapping[str, Mapping[str, Points]], names: Sequence[str]) -> None:
    """A panel per value, a line per candidate; tags stand at their points."""
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
    grid.flat[0].legend(frameon=False, loc="lower left", fontsize=9)


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
