"""Word files as text, with python-docx: paragraphs and tables in their order. Headings and tables become Markdown."""

import io
import re
from collections.abc import Iterator
from typing import Any

from compress.serve.documents.content import Content, DocumentError
from compress.serve.documents.tables import TableText

LEVELS = 6
NAMED_PARTS = {"media": "pictures", "charts": "charts", "diagrams": "diagrams", "embeddings": "embedded files"}
TEXT_PARTS = {  # Word also writes some of them without any text
    "header": "headers",
    "footer": "footers",
    "footnotes": "footnotes",
    "endnotes": "endnotes",
    "comments": "comments",
}
PART = re.compile(r"/word/([a-z]+)")
TEXT = re.compile(rb"<(\w+:)?t[ >]")
READ_IN = {"r", "hyperlink", "p", "tc", "tr", "tbl", "body", "document"}  # elements whose text is read
ELEMENTS = {
    "txbxContent": "text boxes",
    "sdtContent": "content controls",
    "ins": "tracked insertions",
    "oMath": "equations",
}


def read_docx(data: bytes) -> Content:
    """The text of the body. Raises DocumentError if python-docx cannot read the file."""
    import docx

    try:
        document = docx.Document(io.BytesIO(data))
        table = TableText()
        for part in document.iter_inner_content():
            if hasattr(part, "rows"):
                table.add(rows_of(part))
            else:
                table.lines += paragraph(part)
        notes = [*table.notes, *(f"{word} were not read" for word in (*unread_parts(document), *unread_text(document)))]
    except (MemoryError, RecursionError):
        raise
    except Exception as error:  # python-docx raises errors of every kind for damaged files
        raise DocumentError(f"the docx is damaged: {type(error).__name__}: {str(error)[:120]}") from None
    return Content("docx", table.text.strip(), notes)


def paragraph(part: Any) -> list[str]:
    """The lines of a paragraph: Markdown for headings and list items."""
    text, style = part.text.strip(), (part.style.name or "" if part.style is not None else "")
    if not text:
        return []
    if style.startswith("Heading ") and style[8:].isdecimal():
        return ["#" * min(int(style[8:]), LEVELS) + f" {text}", ""]
    return [f"- {text}"] if style.startswith("List") else [text, ""]


def rows_of(table: Any) -> Iterator[list[str]]:
    """The texts of a table's cells, row by row. A merged cell appears once."""
    seen: set[Any] = set()
    for row in table.rows:
        texts = []
        for cell in row.cells:
            texts.append("" if cell._tc in seen else cell_text(cell))
            seen.add(cell._tc)
        yield texts


def cell_text(cell: Any) -> str:
    """The text of a cell, tables inside it included."""
    parts = [cell.text, *(" ".join(texts) for inner in cell.tables for texts in rows_of(inner))]
    return " ".join(parts)


def unread_parts(document: Any) -> list[str]:
    """The kinds of parts of the file that are not read, such as pictures. A part without text does not count."""
    words = []
    for part in document.part.package.iter_parts():
        name = match[1] if (match := PART.match(str(part.partname))) else ""
        words += [NAMED_PARTS[name]] if name in NAMED_PARTS else []
        words += [TEXT_PARTS[name]] if name in TEXT_PARTS and TEXT.search(part.blob) else []
    return list(dict.fromkeys(words))


def unread_text(document: Any) -> list[str]:
    """The kinds of elements in the body whose text is not read, such as text boxes."""
    words = {}
    for text in document.element.body.iter("{*}t"):
        outer = {ancestor.tag.rpartition("}")[2] for ancestor in text.iterancestors()}
        if outer - READ_IN:
            word = next((word for name, word in ELEMENTS.items() if name in outer), "fields and other elements")
            words[word] = True
    return list(words)
