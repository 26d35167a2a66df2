"""Read the documents of a source, parse its weight, and compute the digest of its text.

A source is "NAME" (an embedded corpus, or a hub dataset ORG/NAME) or "FILE", each optionally followed by "=WEIGHT".
`readers` reads the file kinds, `embedded` the bundled texts.
"""

import hashlib
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from calibration import embedded, hub, readers
from calibration.document import Document
from calibration.errors import CalibrationError
from calibration.files import PIECE
from calibration.suggest import did_you_mean

EMBEDDED: dict[str, Callable[[], Iterator[Document]]] = {
    "default": embedded.default,
    "heldout": embedded.heldout,
    "python": embedded.python,
}
MAX_WEIGHT = 1e6  # beyond it, the other sources would get no token


@dataclass(frozen=True)
class TextSource:
    """A source of text: an embedded corpus, a file or a hub dataset, and its weight relative to other sources."""

    name: str
    weight: float = 1.0

    @property
    def label(self) -> str:
        """The name without folders, so that a manifest contains no paths of the user."""
        return Path(self.name).name if readers.is_file_name(self.name) else self.name


def parse_source(source: str) -> TextSource:
    """The name and weight in "FILE=2.5"; the default weight is 1.

    A text that is the name of an existing file has no weight, even if it contains "=".
    Raises CalibrationError if the weight is not a positive number.
    """
    name, equals, weight = source.rpartition("=")
    if not equals or Path(source).exists():
        return TextSource(source)
    try:
        value = float(weight)
    except ValueError as error:
        raise CalibrationError(
            f"{source}: the weight {weight!r} is not a number; write for example {name}=2.5"
        ) from error
    if not value > 0:
        raise CalibrationError(f"{source}: the weight is {weight}, but must be above 0; raise it or remove the source")
    if not 1 / MAX_WEIGHT <= value <= MAX_WEIGHT:
        raise CalibrationError(
            f"{source}: the weight is {weight}, but must be from {1 / MAX_WEIGHT:g} to {MAX_WEIGHT:g}; "
            f"write for example {name}=2.5"
        )
    return TextSource(name, value)


def load_documents(source: str) -> list[Document]:
    """All documents that contain text, in the order of the source.

    Raises CalibrationError if the source cannot be read or no document contains text.
    """
    name = parse_source(source).name
    documents = list(iterate_documents(name))
    if not documents:
        raise CalibrationError(f"{name}: the text is empty; name a source that contains text")
    return documents


def iterate_documents(name: str) -> Iterator[Document]:
    """The documents that contain text, read one at a time. Raises CalibrationError if one cannot be read."""
    return (document for document in _read(name) if not document.is_empty)


def check_source(source: str) -> None:
    """Read a source up to its first document with text. A hub dataset is not read.

    Raises CalibrationError if the source cannot be read or no document has text.
    """
    name = parse_source(source).name
    if not is_on_hub(name) and all(document.is_empty for document in _read(name)):
        raise CalibrationError(f"{name}: the text is empty; name a source that contains text")


def is_on_hub(name: str) -> bool:
    """True if `name`, a source without its weight, is a hub dataset."""
    return name not in EMBEDDED and not readers.is_file_name(name) and hub.is_hub_name(name)


def source_digest(source: str) -> str:
    """The digest of a source's text, "sha256:…". See `digest_documents`."""
    return digest_documents(load_documents(source))


def digest_documents(documents: Iterable[Document]) -> str:
    """The digest of the documents' text, "sha256:…".

    Names, file kinds, line ends and the order of documents do not change it. A copy of a text under another name has
    the same digest. So evaluation text is recognised among training text.
    """
    digests = sorted(_digest(_canonical(document)) for document in documents)
    return "sha256:" + hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _read(name: str) -> Iterator[Document]:
    if name in EMBEDDED:
        return EMBEDDED[name]()
    if readers.is_file_name(name):
        return readers.read_file(Path(name))
    if hub.is_hub_name(name):
        return hub.read_hub(name)
    raise CalibrationError(
        f"{name}: no such file or corpus; embedded corpora: {', '.join(EMBEDDED)}; "
        f"file kinds: {', '.join(readers.KINDS)}; hub datasets: ORG/NAME[:CONFIG[:SPLIT]]{did_you_mean(name, EMBEDDED)}"
    )


def _digest(text: str) -> str:
    """sha256 of the UTF-8 text, computed in pieces, because a copy of a large text takes much memory."""
    digest = hashlib.sha256()
    for start in range(0, len(text), PIECE):
        digest.update(text[start : start + PIECE].encode())
    return digest.hexdigest()


def _canonical(document: Document) -> str:
    if document.messages is None:
        return _normal(document.text or "")
    turns = (f"{message['role']}\x1f{_normal(message['content'])}" for message in document.messages)
    return "\x1e".join(turns)


def _normal(text: str) -> str:
    return unicodedata.normalize("NFC", text).replace("\r\n", "\n").replace("\r", "\n").strip()
