"""Readers of text files. The ending of the file name chooses the reader.

A plain text file is one document. All other files have one document per row. All kinds except .parquet may be gzipped.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from calibration.document import COLUMNS, Document, row_document
from calibration.errors import CalibrationError
from calibration.files import check_regular, parse_json, read_text, text_lines, text_pieces


def is_file_name(name: str) -> bool:
    """True for an existing path, and for a name with the ending of a supported file."""
    return Path(name).exists() or _kind(Path(name)) in KINDS


def read_file(path: Path) -> Iterator[Document]:
    """The documents of one file. Raises CalibrationError, with the line, row or byte, if the file cannot be read."""
    _check(path)
    return KINDS[_kind(path)](path)


def _check(path: Path) -> None:
    """Raise CalibrationError if the path is missing, is not a regular file, is empty, or has an unknown ending."""
    check_regular(path)
    kind = _kind(path)
    if kind not in KINDS:
        files = f"{kind} files" if kind else "files without an ending"
        raise CalibrationError(f"{path}: {files} are not supported; {_supported()}")


def _kind(path: Path) -> str:
    """The ending of a file name in lower case, without .gz: ".jsonl" for "a/b.JSONL.gz"."""
    return Path(path.stem if path.suffix.lower() == ".gz" else path.name).suffix.lower()


def _supported() -> str:
    return f"supported endings: {', '.join(KINDS)}, and all but .parquet followed by .gz"


def read_lines(path: Path) -> Iterator[tuple[Any, str]]:
    """Every row of a file, with its place for errors. In a plain text file, every non-empty line is a row."""
    _check(path)
    if _kind(path) not in PLAIN:
        yield from ROWS[_kind(path)](path)
        return
    yield from text_lines(path)


def _read_plain(path: Path) -> Iterator[Document]:
    yield Document(str(path), text=read_text(path))


def _read_rows(path: Path) -> Iterator[Document]:
    for row, where in ROWS[_kind(path)](path):
        yield row_document(row, where)


def _json_rows(path: Path) -> Iterator[tuple[Any, str]]:
    """The rows of a file that has one JSON value per line, or one JSON list of rows. Each row comes with its place."""
    start = next((piece for piece in text_pieces(path) if piece.strip()), "")
    if start.lstrip().startswith("["):
        for number, row in enumerate(parse_json(read_text(path), str(path)), 1):
            yield row, f"{path}: row {number}"
        return
    for line, where in text_lines(path):
        yield parse_json(line, where), where


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
            for batch in file.iter_batches(PARQUET_ROWS, columns=columns or None):
                for row in batch.to_pylist():
                    number += 1
                    yield row, f"{path}: row {number}"
    except (ArrowException, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise CalibrationError(f"{path}: the parquet file is damaged ({reason:.120}); download it again") from error


PARQUET_ROWS = 1024  # in memory at once
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
