"""Read documents by name or path, with a weight per source and a digest of their text.

A source is "NAME" (an embedded corpus, or a hub dataset ORG/NAME) or "FILE", each optionally followed by "=WEIGHT".
`readers` reads the file kinds, `embedded` the bundled texts.
"""

import hashlib
import math
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from calibration import embedded, hub, readers
from calibration.document import Document
from calibration.errors import CalibrationError

EMBEDDED: dict[str, Callable[[], Iterator[Document]]] = {
    "default": embedded.default,
    "heldout": embedded.heldout,
    "python": embedded.python,
}


@dataclass(frozen=True)
class TextSource:
    """One text: an embedded name, a file or a hub dataset, and its weight relative to the others."""

    name: str
    weight: float = 1.0

    @property
    def label(self) -> str:
        """The name without folders, so that a manifest contains no paths of the user."""
        return Path(self.name).name if readers.is_file_name(self.name) else self.name


def parse_source(source: str) -> TextSource:
    """The name and weight in "FILE=2.5"; the default weight is 1.

    An existing file with "=" in its name is taken as a file.
    Raises CalibrationError for a weight that is not a positive number.
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
    if not (value > 0 and math.isfinite(value)):
        raise CalibrationError(f"{source}: the weight must be above 0, not {weight}; leave the source out instead")
    return TextSource(name, value)


def load_documents(source: str) -> list[Document]:
    """All documents of a source, at least one, in the source's order. Raises CalibrationError if unreadable."""
    name = parse_source(source).name
    documents = [document for document in _read(name) if not document.is_empty]
    if not documents:
        raise CalibrationError(f"{name}: the text is empty; name a source that contains text")
    return documents


def check_source(source: str) -> None:
    """CalibrationError for a source whose first document cannot be read; hub datasets are not read."""
    name = parse_source(source).name
    if (name in EMBEDDED or readers.is_file_name(name) or not hub.is_hub_name(name)) and not any(
        not document.is_empty for document in _read(name)
    ):
        raise CalibrationError(f"{name}: the text is empty; name a source that contains text")


def source_digest(source: str) -> str:
    """The digest of a source's text, "sha256:…". See `digest_documents`."""
    return digest_documents(load_documents(source))


def digest_documents(documents: Iterable[Document]) -> str:
    """The digest, "sha256:…", of the text alone. Names, file kinds, line ends and the order of documents do not matter.

    So a text is recognised under another name, which keeps evaluation text out of training text.
    """
    digests = sorted(hashlib.sha256(_canonical(document).encode()).hexdigest() for document in documents)
    return "sha256:" + hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _read(name: str) -> Iterator[Document]:
    if name in EMBEDDED:
        return EMBEDDED[name]()
    if readers.is_file_name(name):
        return readers.read_file(Path(name))
    if hub.is_hub_name(name):
        return hub.read_hub(name)
    raise CalibrationError(
        f"{name}: no such file or corpus; embedded: {', '.join(EMBEDDED)}; "
        f"files: {', '.join(readers.KINDS)}; hub: ORG/NAME[:CONFIG[:SPLIT]]"
    )


def _canonical(document: Document) -> str:
    if document.messages is None:
        return _normal(document.text or "")
    turns = (f"{message['role']}\x1f{_normal(message['content'])}" for message in document.messages)
    return "\x1e".join(turns)


def _normal(text: str) -> str:
    return unicodedata.normalize("NFC", text).replace("\r\n", "\n").replace("\r", "\n").strip()
