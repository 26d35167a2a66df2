"""PDF as text, page by page, with pypdf. Pages that are pictures have no text: a note counts them."""

import io
import time

from compress.serve.documents.content import MOST_CHARACTERS, MOST_PAGES, Content, DocumentError

SECONDS = 8.0  # of CPU time; then the pages so far are returned, with a note


def read_pdf(data: bytes) -> Content:
    """The text of the first MOST_PAGES pages.

    Raises DocumentError if the file is damaged or needs a password.
    """
    from pypdf import PdfReader

    try:
        reader = PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise DocumentError("the pdf is encrypted; save it without a password")
        total = len(reader.pages)
    except DocumentError:
        raise
    except Exception as error:  # pypdf raises errors of every kind for damaged files
        raise DocumentError(fault(error)) from None
    return join_pages(reader, total)


def join_pages(reader: "object", total: int) -> Content:
    """The text of all pages within the limits, each below its number."""
    pages: list[str] = []
    unreadable = length = 0
    for number in range(min(total, MOST_PAGES)):
        if time.process_time() > SECONDS or length > MOST_CHARACTERS:
            break
        try:
            text = reader.pages[number].extract_text().strip()  # type: ignore[attr-defined]
        except Exception:  # a damaged page is counted, and the other pages are still read
            text, unreadable = "", unreadable + 1
        pages.append(text)
        length += len(text)
    notes = page_notes(pages, total, unreadable)
    if not any(pages):
        raise DocumentError("; ".join([no_text(pages, unreadable), *notes[1:]]))
    joined = "\n\n".join(f"[page {number}]\n{text}" for number, text in enumerate(pages, 1) if text)
    return Content("pdf", joined, notes, total)


def no_text(pages: list[str], unreadable: int) -> str:
    """Why there is no text: the reason in place of the first note."""
    if unreadable == len(pages):
        return "all pages are damaged" if pages else "the pdf has no page that can be read"
    return "the pdf holds no text, perhaps only scanned pictures"


def page_notes(pages: list[str], total: int, unreadable: int) -> list[str]:
    empty = pages.count("") - unreadable
    notes = [f"{empty} of {len(pages)} pages hold no text, perhaps only pictures"] if empty else []
    notes += [f"{unreadable} pages are damaged"] if unreadable else []
    return notes + ([f"only the first {len(pages)} of {total:,} pages were read"] if len(pages) < total else [])


def fault(error: Exception) -> str:
    kind = type(error).__name__
    if "Encrypt" in str(error) or kind == "DependencyError":
        return "the pdf is encrypted; save it without a password"
    return f"the pdf is damaged: {kind}: {str(error)[:120]}"
