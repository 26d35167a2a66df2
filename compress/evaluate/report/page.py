"""The page of the report: all sections in reading order, and their rows as JSON."""

import json
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from string import Template

from compress.core.atomic import file_errors, write_atomic
from compress.core.errors import QCompressError
from compress.evaluate.report.blocks_section import blocks_section
from compress.evaluate.report.drift_section import drift_section
from compress.evaluate.report.html import Row, count, esc
from compress.evaluate.report.linears_section import linears_section, training_section
from compress.evaluate.report.numbers_table import figures_section, size_section
from compress.evaluate.report.provenance_section import provenance_section
from compress.evaluate.report.report_data import ReportData
from compress.evaluate.report.retention_section import retention_section
from compress.evaluate.report.samples_section import samples_section
from compress.evaluate.report.speed_section import speed_section
from compress.evaluate.report.trend_section import trend_section
from compress.evaluate.report.verdicts_section import cards, headline, lead

TEMPLATE = "page.html"
MARKER = b'<script type="application/json" id="rows">'  # in every report
SECTIONS: tuple[Callable[[ReportData], str], ...] = (
    size_section,
    figures_section,
    retention_section,
    speed_section,
    samples_section,
    drift_section,
    blocks_section,
    trend_section,
    training_section,
    linears_section,
    provenance_section,
)


def check_replaceable(path: Path) -> None:
    """Raises QCompressError if the file exists and is not a report of qcompress. Such a file is never overwritten."""
    if not path.exists():
        return
    with file_errors(path):
        ours = path.is_file() and MARKER in path.read_bytes()
    if not ours:
        raise QCompressError(f"{path}: exists and is not a report of qcompress; use another file")


def write_report(path: Path, data: ReportData) -> None:
    """Write the report as an HTML file, whole or not at all. Equal data give equal bytes.

    Raises QCompressError if another program's file is at `path`.
    """
    check_replaceable(path)
    write_atomic(path, make_report(data).encode(errors="backslashreplace"))


def make_report(data: ReportData) -> str:
    """The HTML of the report. Raises ValueError if a number is not finite."""
    title = data.title or f"{data.reference['name']} and {count(len(data.candidates), 'candidate')}"
    template = resources.files("compress.evaluate.report").joinpath(TEMPLATE).read_text(encoding="utf-8")
    return Template(template).substitute(
        title=esc(title),
        over=esc(f"qcompress · {title}"),
        headline=esc(headline(data)),
        lead=lead(data),
        cards=cards(data),
        sections="".join(make(data) for make in SECTIONS),
        json=embed(data.machine_readable()),
    )


def embed(value: Row) -> str:
    """The value as JSON that is safe inside HTML. Raises ValueError if a number is not finite."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=str)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
