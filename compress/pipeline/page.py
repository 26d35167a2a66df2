"""The report of a recipe. It reads result files only, so a changed limit needs neither a model nor torch."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compress.checkpoint.door.files import read_json
from compress.core.atomic import write_atomic
from compress.core.rows import CompareRow, VerdictRow
from compress.evaluate.drift.limits import HELP_DAMAGE, broken_limits, cure
from compress.evaluate.report import ReportData, write_report
from compress.pipeline.stage import TABLE, check_file

Row = dict[str, Any]
Limits = dict[str, float | None]


def write_page(page: Path, variants: Sequence[str], results: Sequence[Path], limits: Limits) -> Row:
    """Write report.html and report.json from the result files; returns the content of report.json."""
    rows: Row = {key: value for file in results for key, value in read_json(file).items() if key != "findings"}
    findings = [read_json(check_file(page.parent, name))["findings"] for name in variants]
    triples = zip(variants, rows["compare"][1:], findings, strict=True)
    verdicts = [make_verdict(name, row, broken, limits) for name, row, broken in triples]
    shown = {key: value for key, value in rows.items() if key not in ("compare", "distill")}
    limited = {name: limit for name, limit in limits.items() if limit is not None}
    write_report(page, ReportData(rows["compare"], verdicts=verdicts, limits=limited, **shown))
    rows["verdicts"] = verdicts
    text = json.dumps(rows, indent=2, ensure_ascii=False) + "\n"
    write_atomic(page.with_suffix(".json"), text.encode(), kind=TABLE)
    return rows


def make_verdict(name: str, row: CompareRow, findings: Sequence[Row], limits: Limits) -> VerdictRow:
    """The verdict on a variant: it passes if it breaks no rule and no limit.

    `reason` has the first broken rule and every broken limit.
    """
    errors = [finding for finding in findings if finding["level"] == "error"]
    reasons = [f"breaks rule {error['rule']}" for error in errors[:1]]
    reasons += broken_limits(row, limits)
    verdict: VerdictRow = {
        "name": name,
        "passed": not reasons,
        "reason": "; ".join(reasons) or None,
        "check_errors": len(errors),
    }
    if reasons:
        verdict["cure"] = HELP_DAMAGE if errors else cure(row, limits)
    return verdict
