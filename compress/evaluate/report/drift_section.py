"""The section "Drift in the text": by position in the window, by document, and at the worst tokens with context."""

from collections.abc import Sequence
from functools import partial

from matplotlib.figure import Figure

from compress.core.rows import CompareRow, DocumentRow, GuessRow, WorstRow
from compress.evaluate.report.html import dot, esc, folded, framed, legend, percent, section, table
from compress.evaluate.report.plots import Picture, log_ticks, render, series, short
from compress.evaluate.report.report_data import ReportData, css_colour

DOCUMENTS = 5
WORST = 10


def drift_section(data: ReportData) -> str:
    """The section as HTML, or "" if no row has a breakdown."""
    drawn = [row for row in data.candidates if row.get("positions")]
    parts = [positions(data)] if drawn else []
    parts += [details(data, index) for index in range(1, len(data.rows))]
    about = (
        "KL divergence (nats per token) by position in the window. Open a candidate for the documents and the tokens "
        "with the largest KL."
    )
    return section("Drift in the text", about, *parts) if any(parts) else ""


def positions(data: ReportData) -> str:
    draw = partial(draw_positions, candidates=data.candidates)
    return framed(
        render(Picture(draw, 3.2, 3.6, "positions")),
        "KL divergence by position in the window",
        legend(data.names),
    )


def draw_positions(figure: Figure, narrow: bool, candidates: Sequence[CompareRow]) -> None:
    """Draw KL over ranges of positions: a step line per candidate, on logarithmic axes."""
    axes = figure.subplots()
    for index, row in enumerate(candidates):
        buckets = row.get("positions") or []
        if buckets:
            edges = [max(bucket["start"], 1) for bucket in buckets] + [buckets[-1]["end"]]
            heights = [max(bucket["kl"], 1e-7) for bucket in buckets]
            axes.stairs(heights, edges, color=series(index), lw=2, label=short(row["name"]), baseline=None)
    axes.set(xscale="log", yscale="log", title="KL divergence, nats per token", xlabel="position in the window, tokens")
    low, high = axes.get_ylim()
    axes.set_ylim(low / 1.15, high * 1.15)
    log_ticks(axes, "x")
    log_ticks(axes, "y")


def details(data: ReportData, index: int) -> str:
    """A candidate's documents and worst tokens, as a collapsible block, or "" if there are none."""
    row = data.rows[index]
    body = documents(row.get("documents") or []) + worst(row.get("worst") or [])
    return folded(row["name"], body, open_=False, mark=dot(css_colour(index))) if body else ""


def documents(rows: Sequence[DocumentRow]) -> str:
    if not rows:
        return ""
    lines = [
        f"<tr><th>{esc(row['document'])}</th><td>{row['tokens']:,}</td><td>{row['kl']:.4f}</td>"
        f"<td>{row['reference_nll']:.3f}</td><td>{row['nll']:.3f}</td></tr>"
        for row in rows[:DOCUMENTS]
    ]
    return table(
        ["documents with the largest KL", "tokens", "KL, nats per token", "loss of the reference, nats", "loss, nats"],
        lines,
    )


def worst(rows: Sequence[WorstRow]) -> str:
    """A list of the tokens with the largest KL: each with its context and the most likely tokens of both models."""
    lines = [
        f'<li><span class="kl">{row["kl"]:.2f} nats</span> <q>{esc(row["before"])}<mark>{esc(row["token"])}</mark></q>'
        f"<p><small>reference predicts</small> {guesses(row['reference'])} "
        f"<small>candidate predicts</small> {guesses(row['candidate'])}</p></li>"
        for row in rows[:WORST]
    ]
    return f'<ol class="worst">{"".join(lines)}</ol>' if lines else ""


def guesses(rows: Sequence[GuessRow]) -> str:
    """The most likely tokens with their probabilities."""
    return " ".join(
        f"<code>{esc(row['token'].strip() or repr(row['token']))}</code> {percent(row['probability'])}"
        for row in rows[:3]
    )
