"""The header reader agrees with the gguf package on sound files, and refuses damaged ones in one line, at once."""

import struct
import time
import tracemalloc

import numpy as np
import pytest
from gguf import GGUFReader

from compress.checkpoint.gguf.reader import MAX_HEADER, read_file
from compress.core.errors import QCompressError

HUGE = 2**63


def header(tensors=0, keys=0, version=3, magic=b"GGUF"):
    return magic + struct.pack("<IQQ", version, tensors, keys)


def text(value):
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def pair(key, kind, value):
    return text(key) + struct.pack("<I", kind) + value


def tensor(name, sizes, kind=0, offset=0):
    return text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset)


def padded(data):
    return data + b"\0" * (-len(data) % 32)


def read(tmp_path, data):
    (tmp_path / "x.gguf").write_bytes(data)
    return read_file(tmp_path / "x.gguf")


def test_values_and_tensors_are_those_that_the_gguf_package_reads(llama, tmp_path):
    llama.metadata |= {"a.list": [1, 2, 3], "a.floats": [0.5, 2.0], "a.truth": True}
    file = llama.write(tmp_path / "model.gguf")
    ours, theirs = read_file(file), GGUFReader(file)
    for key, value in ours.metadata.items():
        expected = theirs.fields[key].contents()
        assert (value.tolist() if isinstance(value, np.ndarray) else value) == expected, key
    assert [one.name for one in theirs.tensors] == list(ours.tensors)
    for one in theirs.tensors:
        mine = ours.tensors[one.name]
        assert (mine.offset, mine.bytes, mine.shape) == (one.data_offset, one.n_bytes, tuple(one.shape[::-1]))
        assert mine.data.tobytes() == one.data.tobytes()


def test_version_2_and_another_alignment_are_read(tmp_path):
    data = header(1, 1, version=2) + pair("general.alignment", 4, struct.pack("<I", 64)) + tensor("x", [4])
    data += b"\0" * (-len(data) % 64)
    assert read(tmp_path, data + b"\1" * 16).tensors["x"].offset == len(data)


BAD = {
    "empty": (b"", "its first four bytes are not GGUF"),
    "another format": (b"PK\3\4" + b"\0" * 50, "its first four bytes are not GGUF"),
    "four bytes": (b"GGUF", "cut short: the version ends at byte 8, but the file has 4 bytes"),
    "twenty bytes": (header()[:20], "cut short: the key count ends at byte 24, but the file has 20 bytes"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "is a big-endian GGUF file"),
    "version 1": (header(version=1), "is GGUF version 1, not 2 or 3"),
    "tensors without end": (header(tensors=HUGE), "has a tensor count of 9,223,372,036,854,775,808, but room for 0"),
    "keys without end": (header(keys=HUGE), "has a key count of 9,223,372,036,854,775,808, but room for 0"),
    "a long key": (header(keys=1) + struct.pack("<Q", HUGE) + b"\0" * 9, "metadata key 0 has 9,223,372,036,854,"),
    "a long text": (header(keys=1) + pair("a.b", 8, struct.pack("<Q", 2**40)), "a.b has 1,099,511,627,776 bytes"),
    "a long list": (header(keys=1) + pair("a.b", 9, struct.pack("<IQ", 4, HUGE)), "cut short: a.b ends at byte 36,"),
    "many texts": (header(keys=1) + pair("a.b", 9, struct.pack("<IQ", 8, HUGE)), "a.b has 9,223,372,036,854,775,808 t"),
    "texts that end early": (header(keys=1) + pair("a.b", 9, struct.pack("<IQ", 8, 99)), "a.b has 99 texts, but the"),
    "a list of lists": (
        header(keys=1) + pair("a.b", 9, struct.pack("<IQ", 9, 1)),
        "a.b has a value of the unknown type",
    ),
    "an unknown type": (header(keys=1) + pair("a.b", 77, b"\0" * 8), "a.b has a value of the unknown type 77"),
    "no text": (header(keys=1) + pair("a.b", 8, text(b"\xff\xfe")), "a.b is not UTF-8 text"),
    "a key of control characters": (
        header(keys=1) + pair("a\n\x1b[31m", 77, b"\0" * 8),
        "a??[31m has a value of the unknown type 77",
    ),
    "a key twice": (header(keys=2) + 2 * pair("a.b", 0, b"\1"), "has the metadata key a.b twice"),
    "many dimensions": (header(1) + tensor("x", [1] * 9), "x has 9 dimensions, not 1 to 4"),
    "no dimension": (header(1) + tensor("x", []), "x has 0 dimensions, not 1 to 4"),
    "a size of zero": (header(1) + tensor("x", [0, 4]), "x has shape (4, 0)"),
    "a vast tensor": (padded(header(1) + tensor("x", [HUGE, 2])), "cut short: x ends at byte"),
    "half a block": (
        header(1) + tensor("x", [33], kind=2),
        "x has shape (33,), but its rows are stored in blocks of 32",
    ),
    "an unknown ggml type": (header(1) + tensor("x", [4], kind=99), "x has the unknown ggml type 99"),
    "a tensor twice": (
        padded(header(2) + tensor("x", [8]) + tensor("x", [8], offset=32)) + b"\0" * 64,
        "has the tensor x twice",
    ),
    "tensors that overlap": (
        padded(header(2) + tensor("x", [16]) + tensor("y", [16], offset=32)) + b"\0" * 128,
        "y begins at byte 32 of the data, not at 64",
    ),
    "a gap": (
        padded(header(1) + tensor("x", [8], offset=96)) + b"\0" * 128,
        "x begins at byte 96 of the data, not at 0",
    ),
    "an odd alignment": (
        header(0, 1) + pair("general.alignment", 4, struct.pack("<I", 48)),
        "general.alignment is 48, not a power of two",
    ),
    "an alignment of text": (header(0, 1) + pair("general.alignment", 8, text("32")), "general.alignment is 32, not"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_damaged_header_is_one_line_at_once(tmp_path, name):
    data, words = BAD[name]
    started = time.perf_counter()
    tracemalloc.start()
    with pytest.raises(QCompressError) as error:
        read(tmp_path, data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    message = error.value.message
    assert words in message and message.startswith(f"{tmp_path / 'x.gguf'}: ") and "\n" not in message
    assert time.perf_counter() - started < 2 and peak < 20e6


def test_a_file_cut_at_any_byte_is_refused(llama, tmp_path):
    data = llama.write(tmp_path / "model.gguf").read_bytes()
    start = read_file(tmp_path / "model.gguf").tensors["token_embd.weight"].offset
    for size in (*range(0, start, 13), *range(start, len(data), 9973), len(data) - 1):
        with pytest.raises(QCompressError, match=r"cut short|not GGUF|room for"):
            read(tmp_path, data[:size])


def test_a_header_beyond_the_limit_is_refused_before_it_is_read(tmp_path):
    file = tmp_path / "x.gguf"
    file.write_bytes(header(keys=1) + pair("a.b", 9, struct.pack("<IQ", 0, 2 * MAX_HEADER)))
    with file.open("r+b") as stream:
        stream.truncate(3 * MAX_HEADER)
    with pytest.raises(QCompressError, match=r"a\.b makes the header 268,435,507 bytes long, more than"):
        read_file(file)


def test_a_pipe_is_no_file(tmp_path):
    import os

    os.mkfifo(tmp_path / "x.gguf")
    with pytest.raises(QCompressError, match="no such file"):
        read_file(tmp_path / "x.gguf")
