"""Headers of safetensors files: qcompress accepts exactly what the safetensors library accepts."""

import json
from pathlib import Path

import pytest
from safetensors import SafetensorError, safe_open

from compress.checkpoint.read import read_header
from compress.core.errors import QCompressError


def entry(start, end, shape=(2,), dtype="F16", **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end], **more}


def pair(first, second, **more):
    return {"a": first, "b": second, **more}


NESTED = "[" * 200 + "]" * 200
FINE = pair(entry(0, 4), entry(4, 8))
HEADERS = {  # name: (the header as an object or as text, bytes of data)
    "two tensors": (FINE, 8),
    "in another order": (pair(entry(4, 8), entry(0, 4)), 8),
    "no tensors": ({}, 0),
    "metadata of text": ({**FINE, "__metadata__": {"format": "pt"}}, 8),
    "empty metadata": ({**FINE, "__metadata__": {}}, 8),
    "a tensor without numbers": (pair(entry(0, 0, (0, 7)), entry(0, 4)), 4),
    "an empty tensor between two": ({**FINE, "c": entry(4, 4, (3, 0))}, 8),
    "a scalar": ({"a": entry(0, 2, ())}, 2),
    "an unknown key in an entry": (pair(entry(0, 4, note="x"), entry(4, 8)), 8),
    "spaces after it": (json.dumps(FINE) + "   ", 8),
    "spaces before it": ("  " + json.dumps(FINE), 8),
    "overlapping": (pair(entry(0, 4), entry(2, 6)), 6),
    "on top of each other": (pair(entry(0, 4), entry(0, 4)), 4),
    "a gap": (pair(entry(0, 4), entry(6, 10)), 10),
    "a gap at the start": (pair(entry(2, 6), entry(6, 10)), 10),
    "data that no tensor has": (FINE, 12),
    "too little data": (FINE, 6),
    "an empty tensor in the middle of another": ({**FINE, "c": entry(2, 2, (0,))}, 8),
    "an empty tensor behind the data": ({**FINE, "c": entry(12, 12, (0,))}, 8),
    "offsets that run backwards": ({"a": entry(4, 0)}, 4),
    "a size that is too small": ({"a": entry(0, 2)}, 2),
    "a size that is too large": ({"a": entry(0, 8)}, 8),
    "sizes beyond 64 bits": ({"a": entry(0, 0, (2**40, 2**40, 0))}, 0),
    "an offset beyond 64 bits": ({"a": entry(2**64, 2**64, (0,))}, 0),
    "metadata of numbers": ({**FINE, "__metadata__": {"epoch": 3}}, 8),
    "metadata in metadata": ({**FINE, "__metadata__": {"a": {}}}, 8),
    "metadata of null": ({**FINE, "__metadata__": {"a": None}}, 8),
    "metadata as a list": ({**FINE, "__metadata__": []}, 8),
    "metadata as text": ({**FINE, "__metadata__": "pt"}, 8),
    "a shape of floats": ({"a": entry(0, 4, (2.0,))}, 4),
    "a shape of booleans": ({"a": entry(0, 2, (True,))}, 2),
    "a shape of text": ({"a": {**entry(0, 4), "shape": "2"}}, 4),
    "a shape as an object": ({"a": {**entry(0, 2), "shape": {}}}, 2),
    "a negative shape": ({"a": entry(0, 4, (-2,))}, 4),
    "offsets of booleans": ({"a": entry(False, 4)}, 4),
    "three offsets": ({"a": {**entry(0, 4), "data_offsets": [0, 4, 8]}}, 4),
    "no offsets": ({"a": {"dtype": "F16", "shape": [2]}}, 4),
    "no shape": ({"a": {"dtype": "F16", "data_offsets": [0, 4]}}, 4),
    "no dtype": ({"a": {"shape": [2], "data_offsets": [0, 4]}}, 4),
    "an unknown dtype": ({"a": entry(0, 4, dtype="F17")}, 4),
    "a dtype in small letters": ({"a": entry(0, 4, dtype="f16")}, 4),
    "a dtype as a number": ({"a": entry(0, 4, dtype=16)}, 4),
    "an entry of null": ({"a": None}, 0),
    "a list": ([], 0),
    "a number": ("3", 0),
    "nothing": ("", 0),
    "cut short": (json.dumps(FINE)[:-1], 8),
    "more behind it": (json.dumps(FINE) + "{}", 8),
    "NaN in it": ('{"a": {"dtype": "F16", "shape": [NaN], "data_offsets": [0, 4]}}', 4),
    "an infinite unknown key": ('{"a": {"dtype": "F16", "shape": [2], "data_offsets": [0, 4], "x": Infinity}}', 4),
    "half a character": ('{"\\ud800": {"dtype": "F16", "shape": [2], "data_offsets": [0, 4]}}', 4),
    "a byte order mark": ("\ufeff" + json.dumps(FINE), 8),
    "single quotes": (json.dumps(FINE).replace('"', "'"), 8),
    "a raw line break in a name": ('{"a\nb": {"dtype": "F16", "shape": [2], "data_offsets": [0, 4]}}', 4),
    "two hundred brackets": (f'{{"a": {{"dtype": "F16", "shape": [2], "data_offsets": [0, 4], "x": {NESTED}}}}}', 4),
    "metadata twice": ('{"__metadata__": {}, "__metadata__": {"a": "b"}}', 0),
    "not UTF-8": (b'{"\xff": 1}', 0),
}


def write(path: Path, header, data_bytes: int) -> Path:
    text = header if isinstance(header, str | bytes) else json.dumps(header)
    raw = text if isinstance(text, bytes) else text.encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(data_bytes))
    return path


def library_accepts(file: Path) -> bool:
    try:
        with safe_open(file, framework="np"):
            return True
    except (SafetensorError, OSError):
        return False


def we_accept(file: Path) -> bool:
    try:
        read_header(file)
    except QCompressError as error:
        assert str(file) in error.message and "\n" not in error.message
        return False
    return True


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_is_accepted_if_the_library_accepts_it(name, tmp_path):
    file = write(tmp_path / "model.safetensors", *HEADERS[name])
    assert we_accept(file) == library_accepts(file)


STRICTER = {  # the library accepts these, though no program writes them
    "a tensor listed twice": json.dumps({"a": entry(0, 4)})[:-1] + ', "a": ' + json.dumps(entry(0, 4)) + "}",
    "an entry as a list": json.dumps({"a": ["F16", [2], [0, 4]]}),
    "an object under an unknown key": json.dumps({"a": entry(0, 4, note={})}),
}


@pytest.mark.parametrize("name", STRICTER)
def test_a_header_that_no_program_writes_is_refused(name, tmp_path):
    assert not we_accept(write(tmp_path / "model.safetensors", STRICTER[name], 4))


def test_the_error_names_the_tensor_after_a_gap(tmp_path):
    file = write(tmp_path / "model.safetensors", *HEADERS["a gap"])
    with pytest.raises(QCompressError, match="b begins at byte 6 of the data, not 4: it leaves a gap"):
        read_header(file)
