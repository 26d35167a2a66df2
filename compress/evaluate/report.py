"""The comparison as one HTML file: no network, no script, readable on a phone, light and dark.

Every number is formatted from the rows, and the rows stand in the file as JSON (`<script id="rows">`), so what is
shown and what a machine reads cannot differ. Verdicts first, then pictures, then the table, then where it comes from.
"""

import html
import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from compress.evaluate.plots import draw_drift, draw_linears, draw_loss, render, series

Row = dict[str, Any]
TEMPLATE = "report.html"
LEFT = ' class="left"'
SAME_SIZE = 1.01  # a size within one percent is no argument


def write_report(
    path: Path,
    rows: Sequence[Row],
    *,
    verdicts: Sequence[Row] = (),
    title: str | None = None,
    command: str | None = None,
) -> None:
    """Write the rows of `compare_rows` as an HTML file, whole or not at all.

    `verdicts` are rows {"name", "passed", "reason"} about candidates that had limits to keep; `command` is the line
    that made the report. The same arguments give the same bytes.
    """
    text = make_report(rows, verdicts=verdicts, title=title, command=command)
    partial_path = path.with_name(f".{path.name}.partial")
    partial_path.write_text(text, encoding="utf-8")
    partial_path.replace(path)


def make_report(
    rows: Sequence[Row], *, verdicts: Sequence[Row] = (), title: str | None = None, command: str | None = None
) -> str:
    """The report's text. ValueError when there is no candidate."""
    if len(rows) < 2:
        raise ValueError(f"evaluate.report: {len(rows)} rows; a report needs a reference and a candidate")
    reference, candidates = rows[0], rows[1:]
    judged = {row["name"]: row for row in verdicts}
    title = title or f"{reference['name']} and {count(len(candidates), 'candidate')}"
    template = resources.files("compress.evaluate").joinpath(TEMPLATE).read_text(encoding="utf-8")
    heights = {"height": 4.4, "narrow_height": 6.6 + 0.2 * len(candidates)}
    return Template(template).substitute(
        title=esc(title),
        over=esc(f"qcompress · {title}"),
        headline=esc(headline(reference, candidates, judged)),
        lead=lead(reference),
        cards="".join(card(i, row, reference, candidates, judged.get(row["name"])) for i, row in enumerate(candidates)),
        drift=render(partial(draw_drift, rows=rows), name="drift", **heights),
        head=table_head(),
        body="".join(table_line(index - 1, row, rows) for index, row in enumerate(rows)),
        sections=distillation(rows) + linear_sections(candidates),
        provenance=provenance(rows, command),
        json=embed([*rows]) if not verdicts else embed([*rows], list(verdicts)),
    )


def esc(value: Any) -> str:
    return html.escape(str(value), quote=True)


def embed(rows: list[Row], verdicts: list[Row] | None = None) -> str:
    """JSON that no HTML parser takes for markup. ValueError for numbers that are not finite."""
    value = {"rows": rows} | ({"verdicts": verdicts} if verdicts else {})
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=str)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def percent(value: float, digits: int = 0) -> str:
    return f"{100 * value:.{digits}f} %"


def megabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def plus_minus(row: Row, key: str, digits: int) -> str:
    error = row[f"{key}_se"]
    return f"{row[key]:.{digits}f}" + ("" if error is None else f" <small>± {error:.{digits}f}</small>")


# verdicts


def headline(reference: Row, candidates: Sequence[Row], judged: dict[str, Row]) -> str:
    """One sentence: the closest candidate that keeps its limits, or that none does."""
    kept = [row for row in candidates if judged.get(row["name"], {"passed": True})["passed"]]
    if not kept:
        return f"No candidate of {reference['name']} keeps its limits"
    best = min(kept, key=lambda row: row["kl"])
    size, same = percent(best["bytes"] / reference["bytes"]), percent(best["top1"])
    return f"{best['name']} says the same next token {same} of the time, at {size} of the size"


def lead(reference: Row) -> str:
    """What everything was measured on, in a sentence."""
    start = "no start token" if reference["start_token"] is None else f"start token {reference['start_token']}"
    windows = f"{reference['n_samples']} windows of {reference['seq_len']}, {start}"
    return (
        f"Reference: <b>{esc(reference['name'])}</b>, {megabytes(reference['bytes'])}, perplexity "
        f"{plus_minus(reference, 'perplexity', 2)}. Measured on {reference['tokens']:,} tokens of "
        f"{esc(reference['text'] or 'unnamed text')}, {windows}."
    )


def card(index: int, row: Row, reference: Row, candidates: Sequence[Row], verdict: Row | None) -> str:
    size, colour, furthest = row["bytes"] / reference["bytes"], f"var(--s{index % 7})", max(r["kl"] for r in candidates)
    kind = " · ".join(
        str(part) for part in (row["method"], row["format"], f"{row['bits_per_weight']:.2f} bits") if part
    )
    meters = (
        meter(percent(row["top1"], 1), "same next token", row["top1"], colour),
        meter(megabytes(row["bytes"]), f"{percent(size)} of the size", min(size, 1), colour),
        meter(f"{row['kl']:.4f}", "KL, nats per token", share_of(row["kl"], furthest, candidates), colour),
        meter(f"× {row['perplexity_ratio']:.3f}", "perplexity", None, colour),
    )
    return (
        f'<article class="card"><h3><span class="dot" style="background:{colour}"></span>{esc(row["name"])}</h3>'
        f'<p class="kind">{esc(kind)}</p>{"".join(meters)}{verdict_line(row, candidates, verdict)}</article>'
    )


def share_of(kl: float, furthest: float, candidates: Sequence[Row]) -> float | None:
    """The length of a KL's bar beside the others'; None where there is nothing beside it."""
    return None if len(candidates) < 2 or furthest <= 0 else max(kl, 0) / furthest


def meter(value: str, label: str, share: float | None, colour: str) -> str:
    bar = "" if share is None else f'<i><u style="width:{100 * share:.2f}%;background:{colour}"></u></i>'
    return f'<div class="meter"><div><b>{value}</b><span>{label}</span></div>{bar}</div>'


def verdict_line(row: Row, candidates: Sequence[Row], verdict: Row | None) -> str:
    """Pass or fail where limits were given, and how the candidate stands among the others."""
    parts, kind = [standing(row, candidates)] if len(candidates) > 1 else [], ""
    if verdict is not None:
        kind = " pass" if verdict["passed"] else " fail"
        words = "✓ keeps its limits" if verdict["passed"] else f"✕ {verdict['reason'] or 'breaks its limits'}"
        parts.insert(0, words)
    if not parts:
        return ""
    return f'<p class="verdict{kind}"><b>{esc(parts[0])}</b>{"".join(f" · {esc(part)}" for part in parts[1:])}</p>'


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


# the table

Cell = Callable[[Row], str]
COLUMNS: dict[str, tuple[str | None, Cell]] = {  # heading: key whose least (or greatest, top-1) is marked, cell
    "made by": (None, lambda row: f"{esc(row['method'] or '–')} <small>{esc(row['format'])}</small>"),
    "size": ("bytes", lambda row: megabytes(row["bytes"])),
    "bits": (None, lambda row: f"{row['bits_per_weight']:.2f} <small>{row['bits_per_parameter']:.2f}</small>"),
    "perplexity": (None, lambda row: plus_minus(row, "perplexity", 2)),
    "ratio": (None, lambda row: plus_minus(row, "perplexity_ratio", 3)),
    "KL": ("kl", lambda row: plus_minus(row, "kl", 4)),
    "KL p99": (None, lambda row: f"{row['kl_p99']:.3f}"),
    "top-1": ("top1", lambda row: percent(row["top1"], 1)),
}
OF_CANDIDATES = ("ratio", "KL", "KL p99", "top-1")  # what the reference is to itself says nothing


def table_head() -> str:
    cells = (f"<th{LEFT if name == 'made by' else ''}>{name}</th>" for name in COLUMNS)
    return f"<tr><th>checkpoint</th>{''.join(cells)}</tr>"


def table_line(index: int, row: Row, rows: Sequence[Row]) -> str:
    """A checkpoint's line; the best value of a column is bold where there are several candidates."""
    dot = f'<span class="dot" style="background:var({"--mute" if index < 0 else f"--s{index % 7}"})"></span>'
    cells = []
    for name, (key, cell) in COLUMNS.items():
        best = len(rows) > 2 and index >= 0 and key is not None and row[key] == best_of(key, rows[1:])
        kind = LEFT if name == "made by" else ' class="best"' if best else ""
        cells.append(f"<td{kind}>{'' if index < 0 and name in OF_CANDIDATES else cell(row)}</td>")
    return f'<tr><th title="{esc(row["name"])}">{dot}{esc(row["name"])}</th>{"".join(cells)}</tr>'


def best_of(key: str, rows: Sequence[Row]) -> float:
    return max(row[key] for row in rows) if key == "top1" else min(row[key] for row in rows)


# what the records hold


def linear_rows(row: Row) -> list[Row]:
    """The per-linear errors in a checkpoint's record, [] when it has none."""
    keys = ("block", "linear", "error", "rtn_error")
    return [found for found in row["record"].get("rows") or () if all(key in found for key in keys)]


def linear_sections(candidates: Sequence[Row]) -> str:
    """A picture of every linear's error for each candidate whose method did other than plain rounding."""
    parts: list[str] = []
    for index, row in sorted(enumerate(candidates), key=lambda pair: pair[1]["kl"]):
        found = linear_rows(row)
        gains = sorted(r["error"] / r["rtn_error"] for r in found if r["rtn_error"] > 0)
        if gains and any(r["error"] != r["rtn_error"] for r in found):
            lines = -(-len({r["linear"] for r in found}) // 4)
            picture = render(
                partial(draw_linears, rows=found, colour=series(index)),
                height=1.9 * lines + 0.4,
                narrow_height=3.4 * lines + 0.4,
                name=f"linears{index}",
            )
            parts.append(
                f"<details{'' if parts else ' open'}><summary>{esc(row['name'])}</summary>"
                f"<p>The median linear loses {gains[len(gains) // 2]:.2f} × what plain rounding does.</p>"
                f'<figure role="img" aria-label="Error of every linear, by block">{picture}</figure></details>'
            )
    about = "Share of each linear's output energy that is lost, block by block. Dashed is plain rounding."
    return f"<h2>What is lost in each linear</h2><p>{about}</p>{''.join(parts)}" if parts else ""


def distillation(rows: Sequence[Row]) -> str:
    """The loss curve of each checkpoint that was distilled, and what distillation was worth."""
    parts = []
    for index, row in enumerate(rows):
        curve = [step for step in row["record"].get("loss") or () if "step" in step and "loss" in step]
        if curve:
            colour = series(max(index - 1, 0))
            picture = render(
                partial(draw_loss, curve=curve, colour=colour), height=3.2, narrow_height=3.4, name=f"loss{index}"
            )
            parts.append(
                f"<h2>{esc(row['name'])}: distillation</h2><p>{esc(gain(row['record']))}</p>"
                f'<figure role="img" aria-label="Loss over the steps of distillation">{picture}</figure>'
            )
    return "".join(parts)


def gain(record: Row) -> str:
    """The held-out KL to the teacher before and after, if the record has it."""
    found = next((row for row in record.get("rows") or () if {"kl_before", "kl_after", "factor"} <= row.keys()), None)
    if found is None:
        return f"{count(len(record['loss']), 'step')} recorded."
    return (
        f"Held-out KL to the teacher: {found['kl_before']:.3f} before, {found['kl_after']:.3f} after, "
        f"{found['factor']:.1f} × less."
    )


# provenance


def provenance(rows: Sequence[Row], command: str | None) -> str:
    first = rows[0]
    text: Row = {
        "text": first["text"],
        "windows": f"{first['n_samples']} of {first['seq_len']} tokens, {first['tokens']:,} scored",
        "digest of the ids": first["windows_digest"],
        "seed": first["seed"],
        "start token": "none" if first["start_token"] is None else first["start_token"],
        "vocabulary": f"{first['vocabulary']:,} tokens",
        "command": command,
    }
    return folded("this report", text, open_=True) + "".join(folded(row["name"], history(row)) for row in rows)


def history(row: Row) -> Row:
    """What made a checkpoint, flat: from its record, whatever that holds."""
    record = row["record"]
    known: Row = {"digest": row["digest"], "parameters": f"{row['parameters']:,}", "command": record.get("command")}
    for key, value in (record.get("settings") or {}).items():
        known[key.replace("_", " ")] = value
    source = record.get("source")
    known |= {f"source {k}": v for k, v in source.items()} if isinstance(source, dict) else {"source": source}
    calibration = record.get("calibration") or {}
    for text in calibration.get("sources") or ():
        known[f"calibrated on {text.get('name')}"] = f"{text.get('tokens', '?')} tokens, {text.get('digest')}"
    known |= {f"calibration {key}": calibration.get(key) for key in ("n_samples", "seq_len", "seed", "start_token")}
    known["versions"] = ", ".join(f"{name} {number}" for name, number in (record.get("versions") or {}).items())
    return known


def folded(name: str, facts: Row, *, open_: bool = False) -> str:
    """A block that opens: name, then facts. Digests and commands in fixed width; facts of None or "" are left out."""
    lines = "".join(
        f"<dt>{esc(key)}</dt><dd>{fact(value)}</dd>" for key, value in facts.items() if value not in (None, "")
    )
    return f"<details{' open' if open_ else ''}><summary>{esc(name)}</summary><dl>{lines}</dl></details>"


def fact(value: Any) -> str:
    if isinstance(value, list | tuple):
        value = ", ".join(map(str, value))
    text = str(value)
    return f"<code>{esc(text)}</code>" if text.startswith(("sha256:", "qcompress ")) else esc(text)
