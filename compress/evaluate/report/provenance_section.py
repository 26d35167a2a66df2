"""Where it comes from: the text and the command, and what made every checkpoint."""

from typing import Any

from calibration.start import format_start_token
from compress.evaluate.report.html import Row, esc, folded
from compress.evaluate.report.report_data import ReportData


def provenance_section(data: ReportData) -> str:
    blocks = [("this report", this_report(data)), *((row["name"], history(row)) for row in data.rows)]
    shown = (folded(name, listed(found), open_=not place) for place, (name, found) in enumerate(blocks))
    return f"<h2>Where this comes from</h2>{''.join(shown)}"


def this_report(data: ReportData) -> Row:
    """What every figure was measured on, and with."""
    first = data.reference
    found: Row = {
        "text": first["text"],
        "windows": f"{first['n_samples']} of {first['seq_len']} tokens, {first['tokens']:,} scored",
        "digest of the ids": first["windows_digest"],
        "seed": first["seed"],
        "start token": format_start_token(first["start_token"]),
        "vocabulary": f"{first['vocabulary']:,} tokens",
        "command": data.command,
    }
    for row in data.retention[:1]:
        found |= {"suite": row["suite"], "digest of the suite": row.get("suite_digest"), "asked by": row["runtime"]}
    return found


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


def listed(data: Row) -> str:
    """Names and values side by side; those of None or "" are left out."""
    pairs = ((key, value) for key, value in data.items() if value not in (None, ""))
    return f"<dl>{''.join(f'<dt>{esc(key)}</dt><dd>{fact(value)}</dd>' for key, value in pairs)}</dl>"


def fact(value: Any) -> str:
    """A value as HTML, digests and commands in fixed width."""
    if isinstance(value, list | tuple):
        value = ", ".join(map(str, value))
    text = str(value)
    return f"<code>{esc(text)}</code>" if text.startswith(("sha256:", "qcompress ")) else esc(text)
