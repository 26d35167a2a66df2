"""Text that needs no network: what we wrote (data/*.jsonl, Apache-2.0) and what ships with CPython (PSF licence).

`default` calibrates, `heldout` evaluates, `python` is the rest of the documentation and much library code, for volume.
The three share no paragraph of the documentation, no module and no row. CPython's part is read from the running
interpreter, so another Python version gives another digest; one interpreter always gives the same text.
"""

import re
import sysconfig
from collections.abc import Iterator
from functools import cache
from importlib import resources
from pathlib import Path

from calibration.document import Document
from calibration.errors import CalibrationError
from calibration.readers import read_file

SECTION = 3000  # characters, about; a document of the topics or of a module is a run of whole paragraphs this long
QUOTED = 80  # characters; a shorter paragraph ("For example:") may well stand in two topics
LEFTOVER = 200  # characters; of a topic that is all quotation, its title and a line may remain
HELDOUT_TOPICS = ("debugger", "execmodel", "import")
DEFAULT_TOPICS = (
    *("assignment", "async", "attribute-access", "binary", "calls", "class", "comparisons", "context-managers"),
    *("dict", "function", "global", "identifiers", "lambda", "objects", "operator-summary", "raise"),
    *("string-methods", "strings", "try", "typesmapping", "typesseq-mutable", "with", "yield"),
)
HELDOUT_MODULES = ("shlex",)
DEFAULT_MODULES = ("bisect", "colorsys", "graphlib", "heapq", "textwrap")
PYTHON_MODULES = (
    *("argparse", "ast", "calendar", "cmd", "codeop", "configparser", "contextlib", "copy", "csv", "dataclasses"),
    *("difflib", "dis", "enum", "filecmp", "fileinput", "fnmatch", "fractions", "ftplib", "functools", "getopt"),
    *("gettext", "glob", "gzip", "hashlib", "hmac", "inspect", "ipaddress", "keyword", "linecache"),
    *("mimetypes", "netrc", "numbers", "operator", "optparse", "pickle", "pprint", "profile", "queue", "random"),
    *("reprlib", "sched", "selectors", "shelve", "shutil", "smtplib", "socketserver", "statistics", "string"),
    *("subprocess", "tarfile", "tempfile", "threading", "timeit", "tokenize", "trace", "traceback", "types"),
    *("typing", "urllib/parse", "urllib/request", "uuid", "warnings", "wave", "weakref", "zipfile"),
)


def default() -> Iterator[Document]:
    """Varied original text, then documentation, then a little code."""
    yield from _written("default")
    yield from _topics()["default"]
    yield from _modules(DEFAULT_MODULES)


def heldout() -> Iterator[Document]:
    """Text of the same kinds as `default`, none of it in `default` or `python`: for evaluation only."""
    yield from _written("heldout")
    yield from _topics()["heldout"]
    yield from _modules(HELDOUT_MODULES)


def python() -> Iterator[Document]:
    """The rest of the documentation and library code: over a million characters, all of one kind; mix it."""
    yield from _topics()["python"]
    yield from _modules(PYTHON_MODULES)


def _written(name: str) -> Iterator[Document]:
    with resources.as_file(resources.files("calibration") / "data" / f"{name}.jsonl") as path:
        yield from read_file(path)


@cache
def _topics() -> dict[str, list[Document]]:
    """Every paragraph of the documentation once: topics quote each other, and a quotation must not cross over."""
    topics = _pydoc_topics()
    rest = sorted(set(topics) - set(HELDOUT_TOPICS) - set(DEFAULT_TOPICS))
    seen: set[str] = set()
    found: dict[str, list[Document]] = {"heldout": [], "default": [], "python": []}
    for corpus, names in (("heldout", HELDOUT_TOPICS), ("default", DEFAULT_TOPICS), ("python", tuple(rest))):
        for name in names:
            fresh = [
                part for part in _paragraphs(topics.get(name, "")) if len(part) < QUOTED or _flat(part) not in seen
            ]
            seen.update(map(_flat, fresh))
            found[corpus] += _sections(fresh, f"pydoc topic {name}")
    return found


def _pydoc_topics() -> dict[str, str]:
    try:
        from pydoc_data import topics
    except ImportError as error:
        raise CalibrationError(
            "default, heldout, python: this Python was installed without pydoc_data; "
            "name a text file for calibration, or use a complete Python"
        ) from error
    return topics.topics


def _modules(names: tuple[str, ...]) -> Iterator[Document]:
    """The source of standard library modules; one that this Python does not ship as source is left out."""
    for name in names:
        path = Path(sysconfig.get_path("stdlib")) / f"{name}.py"
        if path.is_file():
            yield from _sections(_paragraphs(path.read_text(encoding="utf-8")), f"standard library {name}")


def _paragraphs(text: str) -> list[str]:
    """Pieces that end with their blank lines; joined, they are the text again."""
    return re.findall(r"\S.*?(?:\n\s*\n|\Z)|\s+\S.*?(?:\n\s*\n|\Z)", text, re.DOTALL)


def _flat(paragraph: str) -> str:
    return " ".join(paragraph.split())


def _sections(paragraphs: list[str], where: str) -> list[Document]:
    """Paragraphs in their order, gathered into documents that end at the first paragraph past SECTION characters.

    A last section that would be short joins the one before it; what is left of a topic quoted elsewhere is dropped.
    """
    texts = [""]
    for part in paragraphs:
        if len(texts[-1]) >= SECTION:
            texts.append("")
        texts[-1] += part
    if len(texts) > 1 and len(texts[-1]) < SECTION // 4:
        texts[-2:] = ["".join(texts[-2:])]
    whole = [text.rstrip() + "\n" for text in texts if len(text) > LEFTOVER]
    return [Document(f"{where}, section {number}", text=text) for number, text in enumerate(whole, 1)]
