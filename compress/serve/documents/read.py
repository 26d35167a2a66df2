"""Read one file, in the contained process. The kind depends on the first bytes of the file, never on its name."""

import io
import json
from collections.abc import Callable
from dataclasses import asdict
from zipfile import BadZipFile, ZipFile

from compress.serve.documents.archive import office_kind
from compress.serve.documents.content import Content, DocumentError, shortened
from compress.serve.documents.docx import read_docx
from compress.serve.documents.pdf import read_pdf
from compress.serve.documents.sheets import read_xls, read_xlsx
from compress.serve.documents.text import read_text

PDF, ZIP, OLE = b"%PDF-", b"PK\x03\x04", bytes.fromhex("D0CF11E0A1B11AE1")
ENCRYPTED = "EncryptedPackage".encode("utf-16-le")  # the stream in which Office stores a file with a password
OFFICE: dict[str, Callable[[bytes], Content]] = {"docx": read_docx, "xlsx": read_xlsx}


def read_bytes(data: bytes) -> bytes:
    """The content of a file as JSON, or {"error"} with the reason why the file cannot be read."""
    try:
        content = shortened(read(data))
        if not content.text.strip():
            raise DocumentError("the file holds no text")
        return json.dumps(asdict(content)).encode()
    except DocumentError as error:
        return json.dumps({"error": str(error)}).encode()


def read(data: bytes) -> Content:
    """The content of a file. Raises DocumentError."""
    if PDF in data[:1024]:
        return read_pdf(data)
    if data.startswith(ZIP):
        return read_office(data)
    if data.startswith(OLE):
        if ENCRYPTED in data:
            raise DocumentError("the file is encrypted; save it without a password")
        return read_xls(data)
    return read_text(data)


def read_office(data: bytes) -> Content:
    try:
        with ZipFile(io.BytesIO(data)) as archive:
            kind = office_kind(archive, len(data))
    except (BadZipFile, NotImplementedError, EOFError, UnicodeDecodeError) as error:
        raise DocumentError(f"the archive is damaged: {error}") from None
    return OFFICE[kind](data)


def needed_imports(data: bytes) -> list[str]:
    """The packages that reading this file needs. The sandbox imports them before it forbids to open files."""
    if PDF in data[:1024]:
        return ["pypdf"]
    if data.startswith(ZIP):
        return ["docx", "python_calamine"]
    return ["python_calamine"] if data.startswith(OLE) else []
