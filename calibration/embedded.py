"""Text that needs no network: original text (data/*.jsonl, Apache-2.0) and text that CPython ships (PSF licence).

`default` is for calibration, `heldout` for evaluation. `python` adds volume: more documentation and library code.
The three texts share no paragraph of the documentation, no module and no row. CPython's part comes from the
running interpreter: the text depends on the Python version.
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

SECTION = 3000  # characters per document, roughly; documents consist of whole paragraphs
QUOTED = 80  # characters; a shorter paragraph ("For example:") may occur in several topics
LEFTOVER = 200  # characters; a shorter section is dropped
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
    """Text of the same kinds as `default`, for evaluation only: none of it is in `default` or `python`."""
    yield from _written("heldout")
    yield from _topics()["heldout"]
    yield from _modules(HELDOUT_MODULES)


def python() -> Iterator[Document]:
    """The rest of the documentation and more library code: over a million characters, to mix with other text."""
    yield from _topics()["python"]
    yield from _modules(PYTHON_MODULES)


def _written(name: str) -> Iterator[Document]:
    with resources.as_file(resources.files("calibration") / "data" / f"{name}.jsonl") as path:
        yield from read_file(path)


@cache
def _topics() -> dict[str, list[Document]]:
    """The documentation topics of each corpus. A paragraph that occurs in several topics stays in the first one."""
    topics = _pydoc_topics()
    rest = sorted(set(topics) - set(HELDOUT_TOPICS) - set(DEFAULT_TOPICS))
    seen: set[str] = set()
    corpora: dict[str, list[Document]] = {"heldout": [], "default": [], "python": []}
    for corpus, names in (("heldout", HELDOUT_TOPICS), ("default", DEFAULT_TOPICS), ("python", tuple(rest))):
        for name in names:
            fresh = [
                part for part in _paragraphs(topics.get(name, "")) if len(part) < QUOTED or _flat(part) not in seen
            ]
            seen.update(map(_flat, fresh))
            corpora[corpus] += _sections(fresh, f"pydoc topic {name}")
    return corpora


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
    """The source of standard library modules; modules without source in this Python are skipped."""
    for name in names:
        path = Path(sysconfig.get_path("stdlib")) / f"{name}.py"
        if path.is_file():
            yield from _sections(_paragraphs(path.read_text(encoding="utf-8")), f"standard library {name}")


def _paragraphs(text: str) -> list[str]:
    """Split a text into paragraphs, each with the blank lines after it. All paragraphs joined give the text."""
    return re.findall(r"\S.*?(?:\n\s*\n|\Z)|\s+\S.*?(?:\n\s*\n|\Z)", text, re.DOTALL)


def _flat(paragraph: str) -> str:
    return " ".join(paragraph.split())


def _sections(paragraphs: list[str], where: str) -> list[Document]:
    """Documents of consecutive paragraphs, each at least SECTION characters long.

    A short last section joins the one before it. Sections of at most LEFTOVER characters are dropped.
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
