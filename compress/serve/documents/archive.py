"""Limits of a zip archive, read from its directory before anything is unpacked. Office files are zip archives."""

from zipfile import BadZipFile, ZipFile

from compress.serve.documents.content import DocumentError

MOST_ENTRIES, MOST_BYTES, MOST_RATIO, SMALL = 2000, 100_000_000, 100, 20_000_000
ENCRYPTED = 0x1
DOCTYPES = tuple("<!DOCTYPE".encode(encoding) for encoding in ("utf-8", "utf-16-le", "utf-16-be"))
PARTS = {"word/document.xml": "docx", "xl/workbook.xml": "xlsx", "xl/workbook.bin": "xlsx"}


def office_kind(archive: ZipFile, packed: int) -> str:
    """ "docx" or "xlsx", after all checks. `packed` is the size of the archive. Raises DocumentError."""
    entries = archive.infolist()
    names = [entry.filename for entry in entries]
    if len(entries) > MOST_ENTRIES or len(set(names)) < len(names):
        raise DocumentError(f"the archive has more than {MOST_ENTRIES:,} entries, or one of them twice")
    if any(entry.flag_bits & ENCRYPTED for entry in entries):
        raise DocumentError("the archive is encrypted; save it without a password")
    size = sum(entry.file_size for entry in entries)
    if size > MOST_BYTES or (size > SMALL and size > MOST_RATIO * packed):
        raise DocumentError(f"the archive unpacks to {size // 1_000_000:,} MB, which is too much")
    kind = next((kind for name, kind in PARTS.items() if name in names), None)
    if kind is None:
        raise DocumentError("the file is a zip archive, but neither docx nor xlsx; unpack it and send its files")
    check_entities(archive)
    return kind


def check_entities(archive: ZipFile) -> None:
    """Raises DocumentError for an XML document type.

    Its entities can expand without end, and no office program writes a document type.
    """
    for entry in archive.infolist():
        if entry.filename.lower().endswith((".xml", ".rels", ".vml")):
            try:
                data = archive.read(entry)
            except (BadZipFile, NotImplementedError, EOFError) as error:
                raise DocumentError(f"the archive is damaged: {error}") from None
            if any(mark in data.upper() for mark in DOCTYPES):
                raise DocumentError(
                    f"{entry.filename[:80]} declares an XML document type, which no office program writes"
                )
