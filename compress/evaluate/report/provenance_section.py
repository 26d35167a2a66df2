"""The section "Provenance": the text and the command of the report, and the record of each checkpoint."""

from typing import Any

from calibration.start import format_start_token
from compress.core.rows import CompareRow
from compress.evaluate.report.html import Row, esc, folded
from compress.evaluate.report.report_data import ReportData


def provenance_section(data: ReportData) -> str:
    blocks = [("This report", this_report(data)), *((row["name"], record_facts(row)) for row in data.rows)]
    shown = (folded(name, definition_list(values), open_=not place) for place, (name, values) in enumerate(blocks))
    return f"<h2>Provenance</h2>{''.join(shown)}"


def this_report(data: ReportData) -> Row:
    """The measurement behind the report: text, sizes and command, as names and values."""
    first = data.reference
    values: Row = {
        "evaluation text": first["text"],
        "windows": f"{first['n_samples']} of {first['seq_len']} tokens, {first['tokens']:,} scored",
        "digest of the token ids": first["windows_digest"],
        "seed": first["seed"],
        "start token": format_start_token(first["start_token"]),
        "vocabulary": f"{first['vocabulary']:,} tokens",
        "command": data.command,
    }
    for row in data.retention[:1]:
        values |= {
            "task suite": row["suite"],
            "digest of the task suite": row.get("suite_digest"),
            "runtime of the tasks": row["runtime"],
        }
    return values


def record_facts(row: CompareRow) -> Row:
    """The record of a checkpoint as names and values: command, settings, source, calibration, versions."""
    record = row["record"]
    values: Row = {"digest": row["digest"], "parameters": f"{row['parameters']:,}", "command": record.get("command")}
    for key, value in (record.get("settings") or {}).items():
        values[key.replace("_", " ")] = value
    source = record.get("source")
    values |= {f"source {k}": v for k, v in source.items()} if isinstance(source, dict) else {"source": source}
    calibration = record.get("calibration") or {}
    for text in calibration.get("sources") or ():
        values[f"calibrated on {text.get('name')}"] = f"{text.get('tokens', '?')} tokens, {text.get('digest')}"
    values |= {f"calibration {key}": calibration.get(key) for key in ("seed",)}
    values["calibration windows"] = calibration.get("n_samples")
    values["calibration tokens per window"] = calibration.get("seq_len")
    values["calibration start token"] = calibration.get("start_token")
    values["versions"] = ", ".join(f"{name} {number}" for name, number in (record.get("versions") or {}).items())
    return values


def definition_list(values: Row) -> str:
    """An HTML list of names and values. Values of None and "" are left out."""
    pairs = ((key, value) for key, value in values.items() if value not in (None, ""))
    return f"<dl>{''.join(f'<dt>{esc(key)}</dt><dd>{fact(value)}</dd>' for key, value in pairs)}</dl>"


def fact(value: Any) -> str:
    """A value as HTML. Digests and commands have a fixed-width font."""
    if isinstance(value, list | tuple):
        value = ", ".join(map(str, value))
    text = str(value)
    return f"<code>{esc(text)}</code>" if text.startswith(("sha256:", "qcompress ")) else esc(text)
