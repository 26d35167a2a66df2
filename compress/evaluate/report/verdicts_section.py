"""The top of the page: one sentence, what it was measured on, and a card with a verdict for every candidate."""

import math
from collections.abc import Sequence

from compress.evaluate.report.html import Row, count, dot, esc, megabytes, percent, plus_minus
from compress.evaluate.report.report_data import ReportData, css_colour

NO_BREAK = "\u00a0"
SAME_SIZE = 1.01  # a size within one percent is no argument


def headline(data: ReportData) -> str:
    """One sentence: the closest candidate that keeps its limits, or that none does."""
    kept = [row for row in data.candidates if data.verdict_by_name.get(row["name"], {"passed": True})["passed"]]
    if not kept:
        return f"No candidate of {data.reference['name']} keeps its limits"
    best = min(kept, key=lambda row: row["kl"])
    size, same = percent(best["bytes"] / data.reference["bytes"]), percent(best["top1"])
    sentence = f"{best['name']} says the same next token {same} of the time, at {size} of the size"
    return sentence.replace(" %", f"{NO_BREAK}%")


def lead(data: ReportData) -> str:
    """What everything was measured on, in a sentence; and the limits, where there are any."""
    row = data.reference
    start = "no start token" if row["start_token"] is None else f"start token {row['start_token']}"
    size = data.limits.get("max_size")
    budget = f" The budget is {megabytes(size)}." if size else ""
    windows = f"{count(row['n_samples'], 'window')} of {row['seq_len']}"
    return (
        f"Reference: <b>{esc(row['name'])}</b>, {megabytes(row['bytes'])}, perplexity "
        f"{plus_minus(row, 'perplexity', 2)}. Measured on {row['tokens']:,} tokens of "
        f"{esc(row['text'] or 'unnamed text')}, {windows}, {start}.{budget}"
    )


def cards(data: ReportData) -> str:
    return "".join(card(data, index) for index in range(1, len(data.rows)))


def card(data: ReportData, index: int) -> str:
    """A candidate's name, what made it, its figures as bars, and its verdict."""
    row, colour = data.rows[index], css_colour(index)
    size, furthest = row["bytes"] / data.reference["bytes"], max(r["kl"] for r in data.candidates)
    kind = " · ".join(
        str(part) for part in (row["method"], row["format"], f"{row['bits_per_weight']:.2f} bits") if part
    )
    meters = [
        meter(percent(row["top1"], 1), "same next token", row["top1"], colour),
        meter(megabytes(row["bytes"]), f"{percent(size)} of the size", min(size, 1), colour),
        meter(f"{row['kl']:.4f}", "KL, nats per token", share_of(row["kl"], furthest, data.candidates), colour),
        meter(f"× {row['perplexity_ratio']:.3f}", "perplexity", None, colour),
        *kept_meter(data, row, colour),
    ]
    return (
        f'<article class="card"><h3>{dot(colour)}{esc(row["name"])}</h3>'
        f'<p class="kind">{esc(kind)}</p>{"".join(meters)}'
        f"{verdict_line(row, data.candidates, data.verdict_by_name.get(row['name']))}</article>"
    )


def kept_meter(data: ReportData, row: Row, colour: str) -> list[str]:
    """The mean retention over the kinds, [] where it is not known."""
    found = [r for r in data.retention if (r["digest"], r["role"], r["kind"]) == (row["digest"], "candidate", "all")]
    return [
        meter(f"{r['retention']:.0f} %", "of the tasks' score kept", min(r["retention"] / 100, 1), colour)
        for r in found
        if r["retention"] is not None
    ]


def share_of(kl: float, furthest: float, candidates: Sequence[Row]) -> float | None:
    """The length of a KL's bar beside the others'; None where there is nothing beside it."""
    return None if len(candidates) < 2 or furthest <= 0 else max(kl, 0) / furthest


def meter(value: str, label: str, share: float | None, colour: str) -> str:
    bar = "" if share is None else f'<i><u style="width:{100 * share:.2f}%;background:{colour}"></u></i>'
    return f'<div class="meter"><div><b>{value}</b><span>{label}</span></div>{bar}</div>'


def verdict_line(row: Row, candidates: Sequence[Row], verdict: Row | None) -> str:
    """Pass or fail where there was something to keep, and how the candidate stands among the others."""
    parts = []
    if verdict is not None:
        words = "✓ keeps its limits" if verdict["passed"] else f"✕ {verdict['reason']}"
        parts.append(f'<b class="{"good" if verdict["passed"] else "bad"}">{esc(words)}</b>')
    if len(candidates) > 1:
        parts.append(esc(standing(row, candidates)))
    return f'<p class="verdict">{" · ".join(parts)}</p>' if parts else ""


def standing(row: Row, candidates: Sequence[Row]) -> str:
    """Where a candidate stands: beaten by another in size and KL at once, or closest, smallest, or in between."""
    others = [other for other in candidates if other is not row]
    rivals = [other for other in others if beats(other, row)]
    if rivals:
        return f"beaten by {min(rivals, key=lambda other: other['kl'])['name']}: as small and closer"
    smallest = row["bytes"] <= SAME_SIZE * min(other["bytes"] for other in others)
    closest = row["kl"] <= min(other["kl"] for other in others)
    best = ["closest"] * closest + ["smallest"] * smallest
    return " and ".join(best) or "between the others: smaller than the closer ones, closer than the smaller ones"


def beats(other: Row, row: Row) -> bool:
    """No larger, and closer by more than two standard errors of the difference (taken as if unpaired: cautious)."""
    error = math.hypot(other["kl_se"] or 0, row["kl_se"] or 0)
    return other["bytes"] <= SAME_SIZE * row["bytes"] and other["kl"] + 2 * error < row["kl"]
