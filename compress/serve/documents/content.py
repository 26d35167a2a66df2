"""What a reader returns, and the limits of all readers."""

from dataclasses import dataclass, field

MOST_CHARACTERS, MOST_PAGES, MOST_CELLS = 2_000_000, 300, 200_000


class DocumentError(Exception):
    """A file that cannot be read. The message is shown to the person who uploaded it."""


@dataclass
class Content:
    """The kind of a file, its text, and notes about what the text lacks: pages, cells, characters, parts of a docx.

    `pages` is the number of pages of a pdf, and None for other kinds.
    """

    kind: str
    text: str
    notes: list[str] = field(default_factory=list)
    pages: int | None = None


def shortened(content: Content) -> Content:
    """The content with at most MOST_CHARACTERS of text. A note states what is missing."""
    length = len(content.text)
    if length > MOST_CHARACTERS:
        content.text = content.text[:MOST_CHARACTERS]
        content.notes.append(f"only the first {MOST_CHARACTERS:,} of {length:,} characters were read")
    return content
