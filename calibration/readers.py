"""Files of text: one reader for each kind, found by the name's ending.

A plain text file is one document; the others hold one document in each row. Any of them but .parquet may be gzipped.
"""

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from calibration.document import COLUMNS, Document, row_document
from calibration.errors import CalibrationError


def is_file_name(name: str) -> bool:
    """True for anything that exists on disk, and for anything that is named like a file we read."""
    return Path(name).exists() or _kind(Path(name)) in KINDS


def read_file(path: Path) -> Iterator[Document]:
    """The documents of one file. Raises CalibrationError that names the file and the line, row or byte."""
    _check(path)
    return KINDS[_kind(path)](path)


def _check(path: Path) -> None:
    """CalibrationError for what is no file of a known kind that holds something."""
    if not path.exists():
        raise CalibrationError(f"{path}: no such file; check the path")
    if not path.is_file():
        raise CalibrationError(f"{path}: not a file; name each file in it")
    kind = _kind(path)
    if kind not in KINDS:
        raise CalibrationError(f"{path}: files of kind {kind or 'without an ending'!r} are not read; {_known()}")
    if path.stat().st_size == 0:
        raise CalibrationError(f"{path}: the file is empty (0 bytes); name one that holds text")


def _kind(path: Path) -> str:
    """The ending that counts: ".jsonl" for "a/b.JSONL.gz"."""
    return Path(path.stem if path.suffix.lower() == ".gz" else path.name).suffix.lower()


def _known() -> str:
    return f"known: {', '.join(KINDS)}, and .gz of all but .parquet"


def read_lines(path: Path) -> Iterator[tuple[Any, str]]:
    """(row, where it stands) of every row of a file, a line of a plain text file being a row, unless it is empty."""
    _check(path)
    if _kind(path) not in PLAIN:
        yield from ROWS[_kind(path)](path)
        return
    for number, line in enumerate(_decode(path).split("\n"), 1):
        if line.strip():
            yield line, f"{path}: line {number}"


def _read_plain(path: Path) -> Iterator[Document]:
    yield Document(str(path), text=_decode(path))


def _read_rows(path: Path) -> Iterator[Document]:
    for row, where in ROWS[_kind(path)](path):
        yield row_document(row, where)


def _json_rows(path: Path) -> Iterator[tuple[Any, str]]:
    """One JSON value a line, or one list of all rows."""
    text = _decode(path)
    if text.lstrip().startswith("["):
        for number, row in enumerate(_parse(text, str(path)), 1):
            yield row, f"{path}: row {number}"
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            where = f"{path}: line {number}"
            yield _parse(line, where), where


def _parquet_rows(path: Path) -> Iterator[tuple[Any, str]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise CalibrationError(f"{path}: .parquet needs pyarrow; pip install pyarrow, or convert to .jsonl") from error
    try:
        number = 0
        with parquet.ParquetFile(path) as file:
            columns = [name for name in file.schema_arrow.names if name in COLUMNS]
            for batch in file.iter_batches(columns=columns or None):
                for row in batch.to_pylist():
                    number += 1
                    yield row, f"{path}: row {number}"
    except ArrowException as error:
        raise CalibrationError(f"{path}: not a whole parquet file ({error}); fetch it again") from error


def _decode(path: Path) -> str:
    """The file's text, gunzipped, without a byte order mark, every line end as "\\n"."""
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix.lower() == ".gz" else path.read_bytes()
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CalibrationError(f"{path}: not UTF-8 at byte {error.start}; convert the file to UTF-8") from error
    except (OSError, EOFError, zlib.error) as error:
        raise CalibrationError(f"{path}: cannot be read ({error}); fetch it again") from error
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno} column {error.colno}" if "\n" in text else f"column {error.colno}"
        raise CalibrationError(f"{where}: malformed JSON at {place} ({error.msg}); mend or remove it") from error


PLAIN = (".txt", ".text", ".md", ".rst", ".raw", ".tokens", ".utf8")
ROWS: dict[str, Callable[[Path], Iterator[tuple[Any, str]]]] = {
    ".jsonl": _json_rows,
    ".json": _json_rows,
    ".parquet": _parquet_rows,
}
KINDS: dict[str, Callable[[Path], Iterator[Document]]] = {
    **dict.fromkeys(PLAIN, _read_plain),
    **dict.fromkeys(ROWS, _read_rows),
}
