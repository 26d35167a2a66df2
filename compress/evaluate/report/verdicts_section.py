"""The top of the page: a headline, a summary of the measurement, and for each candidate a card with its verdict."""

import math
from collections.abc import Sequence

from compress.core.proportion import ENOUGH
from compress.core.rows import CompareRow, RetentionRow, VerdictRow
from compress.core.units import format_bytes
from compress.evaluate.drift.cells import estimate, with_error
from compress.evaluate.report.html import cell_html, count, dot, esc, percent
from compress.evaluate.report.report_data import ReportData, css_colour

NO_BREAK = "\u00a0"
TOO_FEW = "too few items to tell"
SAME_SIZE = 1.01  # sizes within one percent count as equal


def headline(data: ReportData) -> str:
    """A sentence about the best candidate: of those within their limits, the one with the lowest KL.

    With a teacher, the sentence has two distances: from the teacher and from the 16-bit reference.
    """
    passing = [row for row in data.candidates if data.verdict_by_name.get(row["name"], {"passed": True})["passed"]]
    if not passing:
        return f"No candidate for {data.reference['name']} is within its limits"
    best = min(passing, key=lambda row: row["kl"])
    if data.teacher is not None:
        return (
            f"{best['name']} is {best['teacher_kl']:.3f} nats per token from the teacher {data.teacher['name']}, "
            f"and {best['kl']:.3f} from the 16-bit {data.reference['name']}"
        ).replace(" nats", f"{NO_BREAK}nats")
    size, agreement = percent(best["bytes"] / data.reference["bytes"]), percent(best["top1"])
    sentence = f"{best['name']} predicts the same next token for {agreement} of tokens, at {size} of the size"
    return sentence.replace(" %", f"{NO_BREAK}%")


def lead(data: ReportData) -> str:
    """Two sentences about the reference and the evaluation text, and one about the size limit, if any."""
    row = data.reference
    start = "without a start token" if row["start_token"] is None else f"each after start token {row['start_token']}"
    size = data.limits.get("max_size")
    budget = f" Size limit: {format_bytes(size)}." if size else ""
    windows = f"{count(row['n_samples'], 'window')} of {row['seq_len']} tokens"
    text = f"the text {esc(row['text'])}" if row["text"] else "unnamed text"
    perplexity = cell_html(estimate(row["perplexity"], row["perplexity_se"], 2))
    return (
        f"{teacher_words(data)}Reference: <b>{esc(row['name'])}</b>, {format_bytes(row['bytes'])}, perplexity "
        f"{perplexity}. Measured on {row['tokens']:,} scored tokens of "
        f"{text}, {windows} {start}.{budget} Longer bars are better."
    )


def teacher_words(data: ReportData) -> str:
    """Two sentences about the teacher and the reference's distance from it, or "" if there is no teacher."""
    row, teacher = data.reference, data.teacher
    if teacher is None:
        return ""
    perplexity = cell_html(estimate(teacher["perplexity"], teacher["perplexity_se"], 2))
    loss = cell_html(estimate(row["teacher_kl"], row["teacher_kl_se"], 3))
    return (
        f"Teacher: <b>{esc(teacher['name'])}</b>, {format_bytes(teacher['bytes'])}, perplexity {perplexity}. "
        f"Without quantization, {esc(row['name'])} is {loss} nats per token from it. "
    )


def cards(data: ReportData) -> str:
    return "".join(card(data, index) for index in range(1, len(data.rows)))


def card(data: ReportData, index: int) -> str:
    """The card of one candidate: name, method, figures as bars, and the verdict."""
    row, colour = data.rows[index], css_colour(index)
    size = row["bytes"] / data.reference["bytes"]
    method = [f"method {row['method']}"] if row["method"] else []
    kind = " · ".join([*method, f"format {row['format']}", f"{row['bits_per_weight']:.2f} bits per weight"])
    meters = [
        meter(percent(row["top1"], 1), f"same next token, {count(row['tokens'], 'token')}", row["top1"], colour),
        meter(format_bytes(row["bytes"]), saving(size), max(1 - size, 0), colour),
        meter(
            with_error(row["kl"], row["kl_se"], 4),
            "KL, nats per token",
            closeness(row["kl"], data.candidates),
            colour,
        ),
        *teacher_meter(row, colour),
        meter(f"× {row['perplexity_ratio']:.3f}", "the reference's perplexity", None, colour),
        *retention_meter(data, row, colour),
    ]
    return (
        f'<article class="card"><h3>{dot(colour)}{esc(row["name"])}</h3>'
        f'<p class="kind">{esc(kind)}</p>{"".join(meters)}'
        f"{verdict_line(row, data.candidates, data.verdict_by_name.get(row['name']))}</article>"
    )


def saving(size: float) -> str:
    """A size relative to the reference's, in words."""
    word = "smaller" if size <= 1 else "larger"
    return f"{percent(abs(1 - size))} {word} than the reference"


def teacher_meter(row: CompareRow, colour: str) -> list[str]:
    """The bar of the KL from the teacher, or [] if there is no teacher."""
    if "teacher_kl" not in row:
        return []
    return [
        meter(
            with_error(row["teacher_kl"], row["teacher_kl_se"], 4),
            "KL from the teacher, nats per token",
            None,
            colour,
        )
    ]


def retention_meter(data: ReportData, row: CompareRow, colour: str) -> list[str]:
    """The bar of the mean retention over the kinds of task. Without tasks in the report, []."""
    if not any(r["role"] == "candidate" for r in data.retention):
        return []
    base = data.score_reference
    rows = [r for r in data.retention if (r["digest"], r["role"], r["kind"]) == (row["digest"], "candidate", "all")]
    if not rows:
        return [meter("not evaluated", "tasks", None, colour)]
    items, value = rows[0]["items"], rows[0]["retention"]
    few = f"; {TOO_FEW}" if few_items(data.retention, row["digest"]) else ""
    if value is None:
        return [meter("n/a", f"task score; {base} scores 0, {count(items, 'task')}{few}", None, colour)]
    label = f"of the task score of {base}, {count(items, 'task')}{few}"
    return [meter(f"{value:.0f} %", esc(label), min(value / 100, 1), colour)]


def few_items(rows: Sequence[RetentionRow], digest: str) -> bool:
    """Whether a kind of task has too few items for a statement about a checkpoint."""
    return any(row["items"] < ENOUGH for row in rows if row["digest"] == digest and row["kind"] != "all")


def closeness(kl: float, candidates: Sequence[CompareRow]) -> float | None:
    """The length of a KL's bar: the lowest KL over this KL. As for the other bars, longer is better.

    None for a single candidate: its bar has no scale.
    """
    lowest = min(row["kl"] for row in candidates)
    if len(candidates) < 2 or lowest <= 0:
        return None
    return lowest / kl


def meter(value: str, label: str, share: float | None, colour: str) -> str:
    bar = "" if share is None else f'<i><u style="width:{100 * share:.2f}%;background:{colour}"></u></i>'
    return f'<div class="meter"><div><b>{value}</b><span>{label}</span></div>{bar}</div>'


def verdict_line(row: CompareRow, candidates: Sequence[CompareRow], verdict: VerdictRow | None) -> str:
    """The verdict of a candidate, if it has limits, and its place among the other candidates."""
    parts = []
    if verdict is not None:
        words = "✓ within all limits" if verdict["passed"] else f"✕ {verdict['reason']}"
        if verdict["passed"] and "unsure" in verdict:
            parts.append(f"<b>{esc(verdict['unsure'])}</b>")
        else:
            parts.append(f'<b class="{"good" if verdict["passed"] else "bad"}">{esc(words)}</b>')
    if len(candidates) > 1:
        parts.append(esc(standing(row, candidates)))
    return f'<p class="verdict">{" · ".join(parts)}</p>' if parts else ""


def standing(row: CompareRow, candidates: Sequence[CompareRow]) -> str:
    """A candidate's place among the others, in words: worse than another, closest, smallest, or a trade-off."""
    others = [other for other in candidates if other is not row]
    rivals = [other for other in others if beats(other, row)]
    if rivals:
        rival = min(rivals, key=lambda other: other["kl"])
        return f"worse than {rival['name']}, which has a lower KL and {size_words(rival, row)}"
    smallest = row["bytes"] <= min(other["bytes"] for other in others)
    closest = row["kl"] <= min(other["kl"] for other in others)
    best = ["lowest KL"] * closest + ["smallest"] * smallest
    return " and ".join(best) or "a trade-off between size and KL"


def size_words(other: CompareRow, row: CompareRow) -> str:
    """The size of `other` compared with that of `row`, in words."""
    if other["bytes"] == row["bytes"]:
        return "the same size"
    return "is smaller" if other["bytes"] < row["bytes"] else "is less than 1 % larger"


def beats(other: CompareRow, row: CompareRow) -> bool:
    """Whether `other` is not larger than `row`, and the KL of `other` is lower by more than two standard errors.

    The standard error is that of the unpaired difference.
    """
    error = math.hypot(other["kl_se"] or 0, row["kl_se"] or 0)
    return other["bytes"] <= SAME_SIZE * row["bytes"] and other["kl"] + 2 * error < row["kl"]
