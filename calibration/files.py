"""Bounded reading of text files, plain or gzipped: regular files only, a piece at a time, rows of at most MAX_ROW.

Lines end with "\\n", "\\r\\n" or "\\r", and with nothing else: U+2028 and its like may stand inside a JSON string.
"""

import codecs
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from calibration.errors import CalibrationError

MAX_ROW = 2**24  # characters of one line or one row: more than any book
MAX_RATIO, RATIO_FROM = 100, 2**26  # bytes per byte of a .gz file, counted from this size on; text reaches about 20
PIECE = 2**20  # bytes
HALF_PAIR = re.compile("[\ud800-\udfff]")
ESCAPED_HALF = re.compile(r"\\u[dD][89a-fA-F]")


def check_regular(path: Path) -> None:
    """Raise CalibrationError for a missing or empty file, a folder, a pipe, or a device."""
    if not path.exists():
        raise CalibrationError(f"{path}: no such file; check the path")
    if path.is_dir():
        raise CalibrationError(f"{path}: is a folder; name the files in it")
    if not path.is_file():
        raise CalibrationError(f"{path}: is a pipe or a device; copy its text into a regular file")
    if path.stat().st_size == 0:
        raise CalibrationError(f"{path}: the file is empty (0 bytes); name a file with text")


def read_text(path: Path) -> str:
    """The whole text of a file, without a byte order mark, every line end as "\\n"."""
    text = io.StringIO()
    for piece in text_pieces(path):
        text.write(piece)
    return text.getvalue()


def text_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Pairs of a line and its place, such as "notes.txt: line 3". Blank lines are left out.

    Raises CalibrationError if a line is longer than MAX_ROW.
    """
    number, line = 1, ""
    for piece in text_pieces(path):
        *lines, rest = (line + piece).split("\n")
        for one in lines:
            if one.strip():
                yield check_length(one, f"{path}: line {number}"), f"{path}: line {number}"
            number += 1
        line = check_length(rest, f"{path}: line {number}")
    if line.strip():
        yield line, f"{path}: line {number}"


def check_length(text: str, where: str) -> str:
    """Return the text. Raises CalibrationError if it is longer than MAX_ROW."""
    if len(text) > MAX_ROW:
        raise CalibrationError(f"{where}: is longer than {MAX_ROW:,} characters; split it into several rows")
    return text


def text_pieces(path: Path) -> Iterator[str]:
    """The text of a file in pieces. Raises CalibrationError, with the byte, for text that is not UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    line_ends = io.IncrementalNewlineDecoder(None, translate=True)
    position = 0
    for raw in raw_pieces(path):
        waiting = len(decoder.getstate()[0])
        try:
            text = decoder.decode(raw, final=not raw)
        except UnicodeDecodeError as error:
            byte = position - waiting + error.start
            raise CalibrationError(f"{path}: byte {byte} is not UTF-8; convert the file to UTF-8") from error
        yield line_ends.decode(text if position else text.removeprefix("\ufeff"), final=not raw)
        position += len(raw)


def raw_pieces(path: Path) -> Iterator[bytes]:
    """The bytes of a file in pieces, gunzipped, and an empty piece at the end."""
    packed = path.suffix.lower() == ".gz"
    limit = max(RATIO_FROM, MAX_RATIO * path.stat().st_size) if packed else None
    total = 0
    try:
        with gzip.open(path) if packed else path.open("rb") as file:
            while piece := file.read(PIECE):
                total += len(piece)
                if limit is not None and total > limit:
                    raise CalibrationError(
                        f"{path}: unpacks to more than {MAX_RATIO} times its size; unpack it yourself if you trust it"
                    )
                yield piece
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise CalibrationError(f"{path}: the file cannot be read ({error}); copy or download it again") from error
    except OSError as error:
        raise CalibrationError(f"{path}: the file cannot be read ({error.strerror}); check its permissions") from error
    yield b""


def parse_json(text: str, where: str) -> Any:
    """The value of a JSON text. Raises CalibrationError, beginning with `where`, for text that is not valid JSON."""
    try:
        value = json.loads(text)
        halved = ESCAPED_HALF.search(text) and HALF_PAIR.search(json.dumps(value, ensure_ascii=False))
    except json.JSONDecodeError as error:
        place = f"line {error.lineno} column {error.colno}" if "\n" in text else f"column {error.colno}"
        raise CalibrationError(f"{where}: invalid JSON at {place} ({error.msg}); correct or remove it") from error
    except RecursionError as error:
        raise CalibrationError(f"{where}: the JSON is nested too deeply; correct or remove it") from error
    except ValueError as error:  # a whole number with thousands of digits
        raise CalibrationError(f"{where}: a number has too many digits; correct or remove it") from error
    if halved:
        code = f"\\u{ord(halved[0]):04x}"
        raise CalibrationError(f"{where}: {code} is half a surrogate pair, not a character; correct or remove it")
    return value
