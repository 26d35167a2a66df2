"""Read the header of a .gguf file: the metadata values, and where the bytes of each tensor lie.

Every count and length is compared with the size of the file before it is used, so a damaged file costs neither time nor
memory. The layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. A metadata value becomes an int, float,
bool, str, a list of str, or a numpy array.
"""

import mmap
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from compress.core.errors import QCompressError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
NUMBERS = {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8"}
STRING, ARRAY = 8, 9
MAX_HEADER = 2**27  # bytes; the largest vocabularies of today need 20 MB
MAX_KEYS, MAX_TENSORS, MAX_STRINGS, MAX_NAME, MAX_DIMENSIONS, MAX_ALIGNMENT = (
    10_000,
    100_000,
    2_000_000,
    65_535,
    4,
    65_536,
)
PARTS = {"key": 13, "tensor": 24}  # bytes of the shortest one


@dataclass(frozen=True)
class GgufTensor:
    """One tensor: its shape in torch's order, the number of its ggml type, and its bytes in `file`."""

    name: str
    shape: tuple[int, ...]
    type: int
    file: Path
    offset: int
    bytes: int

    @property
    def rows(self) -> int:
        """The number of rows: the product of all sizes but the last."""
        return prod(self.shape[:-1])

    @property
    def data(self) -> np.ndarray:
        """The stored bytes (rows, bytes per row) as uint8, read from the disk when they are used."""
        flat = np.memmap(self.file, mode="r", dtype=np.uint8, offset=self.offset, shape=(self.bytes,))
        return flat.reshape(self.rows, -1)


@dataclass(frozen=True)
class GgufFile:
    """The header of a .gguf file: its metadata, and its tensors by name."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]


class Cursor:
    """A position in a mapped file. Every step raises QCompressError if the header would go beyond its bounds."""

    def __init__(self, path: Path, data: mmap.mmap):
        self.path, self.data, self.position, self.strings = path, data, 0, 0

    def fail(self, problem: str, cure: str = "fetch the file again") -> QCompressError:
        return refusal(self.path, problem, cure)

    def take(self, count: int, what: str) -> int:
        """Skip `count` bytes and return the position of the first one. `what` names them in an error."""
        start, end = self.position, self.position + count
        if end > len(self.data):
            raise self.fail(f"cut short: {what} ends at byte {end:,}, but the file has {len(self.data):,} bytes")
        if end > MAX_HEADER:
            raise self.fail(f"{what} makes the header {end:,} bytes long, more than {MAX_HEADER:,}")
        self.position = end
        return start

    def unpack(self, layout: str, what: str) -> tuple[Any, ...]:
        return struct.unpack_from(layout, self.data, self.take(struct.calcsize(layout), what))

    def number(self, layout: str, what: str) -> int:
        return int(self.unpack(layout, what)[0])

    def string(self, what: str, limit: int = MAX_HEADER) -> str:
        length = self.number("<Q", what)
        if length > limit:
            raise self.fail(f"{what} has {length:,} bytes, more than {limit:,}")
        start = self.take(length, what)
        try:
            return self.data[start : start + length].decode("utf-8")
        except UnicodeDecodeError:
            raise self.fail(f"{what} is not UTF-8 text") from None

    def value(self, kind: int, key: str) -> Any:
        """Read a metadata value of the type with the number `kind`."""
        if kind == STRING:
            return self.string(key)
        if kind == ARRAY:
            kind, count = self.unpack("<IQ", key)
            return self.array(int(kind), int(count), key)
        return self.array(kind, 1, key)[0].item()

    def array(self, kind: int, count: int, key: str) -> Any:
        if kind == STRING:
            return self.string_list(count, key)
        if kind not in NUMBERS:
            raise self.fail(f"{key} has a value of the unknown type {kind}")
        dtype = np.dtype(NUMBERS[kind])
        start = self.take(count * dtype.itemsize, key)
        return np.frombuffer(self.data, dtype, count, start).copy()

    def string_list(self, count: int, key: str) -> list[str]:
        self.strings += count
        if self.strings > MAX_STRINGS:
            raise self.fail(f"{key} has {count:,} texts, more than {MAX_STRINGS:,}")
        if 8 * count > len(self.data) - self.position:
            raise self.fail(f"cut short: {key} has {count:,} texts, but the file ends before the last")
        return [self.string(key) for _ in range(count)]


def refusal(path: Path, problem: str, cure: str) -> QCompressError:
    """The error for a problem in a file, as one line. Characters that cannot be printed become question marks."""
    text = problem if len(problem) <= 400 else f"{problem[:397]}..."
    return QCompressError(f"{path}: {''.join(c if c.isprintable() else '?' for c in text)}; {cure}")


def read_file(path: Path) -> GgufFile:
    """The header of a .gguf file. Raises QCompressError if it is missing, cut short, or breaks a rule of the format."""
    if not path.is_file():
        raise QCompressError(f"{path}: no such file; give a .gguf file")
    with path.open("rb") as stream:
        if stream.read(4) != MAGIC:
            raise QCompressError(f"{path}: is no GGUF file: its first four bytes are not GGUF; give a .gguf file")
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return read_header(Cursor(path, data))


def read_header(cursor: Cursor) -> GgufFile:
    """Read a header: the metadata, then the table of tensors. The data of the tensors begins after it."""
    cursor.take(4, "the magic number")
    version = cursor.number("<I", "the version")
    if version & 0xFFFF == 0:
        raise cursor.fail("is a big-endian GGUF file", "convert the model again for a little-endian machine")
    if version not in VERSIONS:
        raise cursor.fail(f"is GGUF version {version}, not 2 or 3", "convert the model again with today's llama.cpp")
    tensor_count = read_count(cursor, "tensor", MAX_TENSORS)
    key_count = read_count(cursor, "key", MAX_KEYS)
    metadata: dict[str, Any] = {}
    for index in range(key_count):
        key = cursor.string(f"metadata key {index}", MAX_NAME)
        if key in metadata:
            raise cursor.fail(f"has the metadata key {key} twice")
        metadata[key] = cursor.value(cursor.number("<I", key), key)
    entries = [read_entry(cursor, index) for index in range(tensor_count)]
    return GgufFile(cursor.path, metadata, place_tensors(cursor, entries, metadata.get("general.alignment", 32)))


def read_count(cursor: Cursor, what: str, limit: int) -> int:
    """The number of tensors or keys. Raises QCompressError if it exceeds `limit` or the room in the file."""
    count = cursor.number("<Q", f"the {what} count")
    room = (len(cursor.data) - cursor.position) // PARTS[what]
    if count > min(limit, room):
        raise cursor.fail(f"has a {what} count of {count:,}, but room for {min(limit, room):,}")
    return count


def read_entry(cursor: Cursor, index: int) -> tuple[str, tuple[int, ...], int, int]:
    """(name, shape, type, offset) of one tensor; ggml stores the fastest-moving size first, torch last."""
    name = cursor.string(f"the name of tensor {index}", MAX_NAME)
    dimensions = cursor.number("<I", name)
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        raise cursor.fail(f"{name} has {dimensions} dimensions, not 1 to {MAX_DIMENSIONS}")
    sizes = cursor.unpack(f"<{dimensions}Q", name)
    kind, offset = cursor.unpack("<IQ", name)
    return name, tuple(reversed(sizes)), kind, offset


def place_tensors(
    cursor: Cursor, entries: list[tuple[str, tuple[int, ...], int, int]], alignment: Any
) -> dict[str, GgufTensor]:
    """Every tensor by name. As in llama.cpp, each must begin at the next aligned byte after the one before it."""
    if not isinstance(alignment, int) or alignment not in (2**power for power in range(17)):
        raise cursor.fail(f"general.alignment is {alignment}, not a power of two up to {MAX_ALIGNMENT:,}")
    start = -(-cursor.position // alignment) * alignment
    tensors: dict[str, GgufTensor] = {}
    expected = 0
    for name, shape, kind, offset in entries:
        if name in tensors:
            raise cursor.fail(f"has the tensor {name} twice")
        if offset != expected:
            raise cursor.fail(f"{name} begins at byte {offset:,} of the data, not at {expected:,}")
        count = stored_bytes(cursor, name, shape, kind)
        end = start + offset + count
        if end > len(cursor.data):
            raise cursor.fail(f"cut short: {name} ends at byte {end:,}, but the file has {len(cursor.data):,} bytes")
        tensors[name] = GgufTensor(name, shape, kind, cursor.path, start + offset, count)
        expected = offset + -(-count // alignment) * alignment
    return tensors


def stored_bytes(cursor: Cursor, name: str, shape: tuple[int, ...], kind: int) -> int:
    """The size of a tensor in bytes. Raises QCompressError if its type is unknown or its rows are not whole blocks."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    if kind not in [one.value for one in GGMLQuantizationType]:
        raise cursor.fail(f"{name} has the unknown ggml type {kind}", "install a newer gguf package")
    block, width = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    if 0 in shape or shape[-1] % block:
        raise cursor.fail(f"{name} has shape {shape}, but its rows are stored in blocks of {block} values")
    return prod(shape) // block * width
