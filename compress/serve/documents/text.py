"""Plain text, JSON, CSV and Markdown as text. The content decides the kind."""

import codecs
import csv
import io
import json

from compress.serve.documents.content import Content, DocumentError
from compress.serve.documents.tables import TableText

BOMS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
SAMPLE = 16_000  # characters by which a CSV file is recognized
DELIMITERS = ",;\t|"
CJK = ("一", "鿿")


def read_text(data: bytes) -> Content:
    """The text of a file without a known signature. Raises DocumentError if its bytes are not text."""
    text, encoding = decode(data)
    notes = [] if encoding.startswith("utf") else [f"decoded as {encoding}"]
    if not text.strip():
        raise DocumentError("the file is empty")
    if is_json(text):
        return Content("json", text, notes)
    if dialect := find_dialect(text):
        return read_csv(text, dialect, notes)
    return Content("text", text, notes)


def decode(data: bytes) -> tuple[str, str]:
    """The text and its encoding. Raises DocumentError if the bytes are not text."""
    for bom, encoding in BOMS.items():
        if data.startswith(bom):
            return data.decode(encoding, "replace"), encoding
    if b"\0" in data:
        raise DocumentError("the file is none of pdf, docx, xlsx, xls, csv, txt, md and json")
    try:
        return data.decode("utf-8"), "utf-8"
    except UnicodeDecodeError:
        pass
    try:
        text = data.decode("gb18030")
    except UnicodeDecodeError:
        return data.decode("cp1252", "replace"), "cp1252"
    chinese, foreign = sum(CJK[0] <= sign <= CJK[1] for sign in text), sum(not sign.isascii() for sign in text)
    return (text, "gb18030") if 2 * chinese > foreign else (data.decode("cp1252", "replace"), "cp1252")


def is_json(text: str) -> bool:
    if text.lstrip()[:1] not in ("{", "["):
        return False
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def find_dialect(text: str) -> type[csv.Dialect] | None:
    """The dialect of a CSV file, or None if the text is not CSV.

    A CSV file has at least two lines, and all lines of a sample have the same number of cells, two or more.
    """
    sample = text[:SAMPLE]
    lines = sample.splitlines()[: -1 if len(text) > SAMPLE else None]
    try:
        dialect = csv.Sniffer().sniff("\n".join(lines), DELIMITERS)
        widths = {len(row) for row in csv.reader(lines, dialect) if row}
    except csv.Error:
        return None
    return dialect if len(lines) > 1 and len(widths) == 1 and widths != {1} else None


def read_csv(text: str, dialect: type[csv.Dialect], notes: list[str]) -> Content:
    table = TableText()
    csv.field_size_limit(1_000_000)
    try:
        table.add(csv.reader(io.StringIO(text, newline=""), dialect))
    except csv.Error:
        return Content("text", text, notes)
    return Content("csv", table.text, [*notes, *table.notes])
