"""The section "Retention": bars with each candidate's share of the reference's score, by kind of task."""

from collections.abc import Sequence

from compress.core.proportion import ENOUGH
from compress.core.rows import RetentionRow
from compress.evaluate.report.html import count, dot, esc, section
from compress.evaluate.report.report_data import ReportData, css_colour

WIDEST = 160  # the longest axis ends at this %; longer intervals are cut off
NAMES = {"qa": "Questions", "python": "Python", "math": "Mathematics", "json": "JSON", "multi-turn": "Conversation"}


def retention_section(data: ReportData) -> str:
    if not any(row["role"] == "candidate" for row in data.retention):
        return ""
    kinds = list(dict.fromkeys(row["kind"] for row in data.retention))
    axis = axis_end(data.retention)
    name = data.score_reference
    about = (
        f"Retention: a checkpoint's score over that of {name} on the same tasks. The thin line is the 95 % interval "
        f"of that ratio. The solid mark is {name}, 100 %{target_words(data)}."
    )
    groups = "".join(kind_group(data, kind, axis) for kind in sorted(kinds, key=lambda kind: kind == "all"))
    return section("Task scores", about, f'<div class="kinds">{groups}</div>')


def target_words(data: ReportData) -> str:
    least = data.limits.get("min_retention")
    return "" if least is None else f"; the dashed mark is the limit, {least:g} %"


def axis_end(rows: Sequence[RetentionRow]) -> float:
    """The upper end of the axis in %."""
    values = [value for row in rows for value in (row["retention"], row["retention_high"]) if value is not None]
    return min(WIDEST, max(110.0, 1.02 * max(values, default=100.0)))


def kind_group(data: ReportData, kind: str, axis: float) -> str:
    """One kind of task: a heading with the reference's score, and a bar per candidate."""
    rows = [row for row in data.retention if row["kind"] == kind]
    base = next((row for row in rows if row["role"] == "reference"), None)
    scored = (
        f"{data.score_reference} scores {100 * base['score']:.0f} of 100" if base and base["score"] is not None else ""
    )
    items = count(rows[0]["items"], "task")
    about = f"mean over all kinds, {items}" if kind == "all" else " · ".join(part for part in (items, scored) if part)
    bars = "".join(bar(data, row, axis) for row in rows if row["role"] == "candidate")
    measured = {row["digest"] for row in rows}
    missing = [index for index, row in enumerate(data.rows) if index and row["digest"] not in measured]
    bars += "".join(missing_bar(data.rows[index]["name"], css_colour(index)) for index in missing)
    name = "All tasks" if kind == "all" else NAMES.get(kind, kind)
    return f'<div class="scores"><h3>{esc(name)} <small>{esc(about)}</small></h3>{bars}</div>'


def bar(data: ReportData, row: RetentionRow, axis: float) -> str:
    """One candidate on one kind of task: name, bar with interval, numbers."""
    index = data.index_of(row["digest"])
    colour = css_colour(index or 0)
    name = row["name"] if index is None else data.rows[index]["name"]
    least = data.limits.get("min_retention")
    marks = f'<s style="left:{place(100, axis)}"></s>'
    marks += "" if least is None else f'<s class="limit" style="left:{place(least, axis)}"></s>'
    drawn = ""
    if row["retention"] is not None:
        drawn = f'<u style="width:{place(row["retention"], axis)};background:{colour}"></u>'
    if row["retention_low"] is not None and row["retention_high"] is not None:
        low, high = place(row["retention_low"], axis), place(row["retention_high"], axis)
        drawn += f'<em style="left:{low};right:calc(100% - {high})"></em>'
    heading = f"<b>{dot(colour)}{esc(name)}</b><span>{numbers(row)}</span>"
    return f'<div class="bar">{heading}<i>{drawn}{marks}</i>{troubles(row)}</div>'


def missing_bar(name: str, colour: str) -> str:
    """The line of a candidate without a score."""
    return f'<div class="bar"><b>{dot(colour)}{esc(name)}</b><span>not evaluated</span></div>'


def place(value: float, axis: float) -> str:
    return f"{100 * min(max(value, 0), axis) / axis:.2f}%"


def numbers(row: RetentionRow) -> str:
    """The retention and its interval as text, and a remark on too few tasks; "n/a" if the reference scores 0."""
    if row["retention"] is None:
        return "n/a"
    few = " <small>too few items to tell</small>" if row["items"] < ENOUGH else ""
    low, high = row["retention_low"], row["retention_high"]
    interval = "" if low is None or high is None else f" <small>{low:.0f} to {high:.0f}</small>"
    return f"{row['retention']:.0f} %{interval}{few}"


def troubles(row: RetentionRow) -> str:
    """The numbers of scorer errors and of empty answers, as HTML. A score alone would hide them."""
    counts = ((row["errors"], "scorer error"), (row["empty"], "empty answer"))
    words = [count(number, noun) for number, noun in counts if number]
    return f"<small>{esc(', '.join(words))}</small>" if words else ""
