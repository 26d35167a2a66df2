"""The page of the report: all sections in reading order, and their rows as JSON."""

import json
import re
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from string import Template

from compress.core.atomic import write_atomic
from compress.core.file_kind import REPORT
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
CJK = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]")
CJK_FONTS = (  # of macOS, Windows, and Linux distributions
    "PingFang SC",
    "Hiragino Sans",
    "Microsoft YaHei",
    "Noto Sans CJK SC",
    "Noto Sans SC",
    "Source Han Sans SC",
    "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei",
)
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


def write_report(path: Path, data: ReportData) -> None:
    """Write the report as an HTML file, whole or not at all. Equal data give equal bytes.

    Raises QCompressError if another program's file is at `path`.
    """
    write_atomic(path, make_report(data).encode(errors="backslashreplace"), kind=REPORT)


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
        note=font_note(data),
        fonts=", ".join(f'"{name}"' for name in CJK_FONTS),
        sections="".join(make(data) for make in SECTIONS),
        json=embed(data.machine_readable()),
    )


def font_note(data: ReportData) -> str:
    """A line about fonts if the page shows a Chinese, Japanese or Korean character, or "" if it does not."""
    if not CJK.search(json.dumps(data.machine_readable(), ensure_ascii=False, default=str)):
        return ""
    words = "Some texts are Chinese, Japanese or Korean. If their characters are boxes, this machine has no font for "
    return f'<p class="note">{words}them: install Noto Sans CJK.</p>\n'


def embed(value: Row) -> str:
    """The value as JSON that is safe inside HTML. Raises ValueError if a number is not finite."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=str)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
