"""Readers of text files. The ending of the file name chooses the reader.

A plain text file is one document. All other files have one document per row. All kinds except .parquet may be gzipped.
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
    """True for an existing path, and for a name with the ending of a supported file."""
    return Path(name).exists() or _kind(Path(name)) in KINDS


def read_file(path: Path) -> Iterator[Document]:
    """The documents of one file. Raises CalibrationError, with the line, row or byte, if the file cannot be read."""
    _check(path)
    return KINDS[_kind(path)](path)


def _check(path: Path) -> None:
    """Raise CalibrationError if the path is missing, a folder, an empty file or a file of another kind."""
    if not path.exists():
        raise CalibrationError(f"{path}: no such file; check the path")
    if not path.is_file():
        raise CalibrationError(f"{path}: is a folder; name the files in it")
    kind = _kind(path)
    if kind not in KINDS:
        files = f"{kind} files" if kind else "files without an ending"
        raise CalibrationError(f"{path}: {files} are not supported; {_supported()}")
    if path.stat().st_size == 0:
        raise CalibrationError(f"{path}: the file is empty (0 bytes); name a file with text")


def _kind(path: Path) -> str:
    """The ending without .gz, in lower case: ".jsonl" for "a/b.JSONL.gz"."""
    return Path(path.stem if path.suffix.lower() == ".gz" else path.name).suffix.lower()


def _supported() -> str:
    return f"supported endings: {', '.join(KINDS)}, and all but .parquet followed by .gz"


def read_lines(path: Path) -> Iterator[tuple[Any, str]]:
    """Every row of a file, with its place for errors. In a plain text file, every non-empty line is a row."""
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
    """The rows of a file that has one JSON value per line, or one JSON list of rows. Each row comes with its place."""
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
        raise CalibrationError(
            f"{path}: reading .parquet needs pyarrow; run pip install pyarrow, or convert the file to .jsonl"
        ) from error
    try:
        number = 0
        with parquet.ParquetFile(path) as file:
            columns = [name for name in file.schema_arrow.names if name in COLUMNS]
            for batch in file.iter_batches(columns=columns or None):
                for row in batch.to_pylist():
                    number += 1
                    yield row, f"{path}: row {number}"
    except ArrowException as error:
        raise CalibrationError(f"{path}: the parquet file is damaged ({error}); download it again") from error


def _decode(path: Path) -> str:
    """The text of a file, unzipped if it ends with .gz. A byte order mark is removed; every line end becomes "\\n"."""
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix.lower() == ".gz" else path.read_bytes()
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CalibrationError(f"{path}: byte {error.start} is not UTF-8; convert the file to UTF-8") from error
    except (OSError, EOFError, zlib.error) as error:
        raise CalibrationError(f"{path}: the file cannot be read ({error}); copy or download it again") from error
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno} column {error.colno}" if "\n" in text else f"column {error.colno}"
        raise CalibrationError(f"{where}: invalid JSON at {place} ({error.msg}); correct or remove it") from error


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
