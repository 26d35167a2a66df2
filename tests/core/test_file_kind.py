"""Files are recognized by their content, so that no file of another program is replaced or removed."""

import pytest

from compress.core.atomic import write_atomic
from compress.core.errors import QCompressError
from compress.core.file_kind import REPORT, WORK_FILE, beginning_kind, json_kind, lines_kind

OBJECT, LINES = json_kind("facts", "counts"), lines_kind("block", "error")
GGUF = beginning_kind(b"GGUF")


@pytest.mark.parametrize(
    ("kind", "content", "ours"),
    [
        (OBJECT, b'{"facts": 1, "counts": 2, "more": 3}', True),
        (OBJECT, b'[{"facts": 1, "counts": 2}]', True),
        (OBJECT, b"", True),
        (OBJECT, b'{"facts": 1}', False),
        (OBJECT, b"[]", False),
        (OBJECT, b"7", False),
        (OBJECT, b"facts counts", False),
        (OBJECT, b"\xff\xfe", False),
        (OBJECT, b"[" * 100_000, False),
        (LINES, b'{"block": "1/2", "error": 0.1}\n{"other": 1}\n', True),
        (LINES, b'{"block": "1', True),
        (LINES, b'{"bl', True),
        (LINES, b'{"block": "1/2"}\n', False),
        (LINES, b'{"name": "1', False),
        (LINES, b"a diary", False),
        (REPORT, b'<!doctype html><script type="application/json" id="rows">', True),
        (REPORT, b"<!doctype html>", False),
        (WORK_FILE, b"anything", True),
        (GGUF, b"GGUF and more", True),
        (GGUF, b"GG", True),
        (GGUF, b"a diary", False),
    ],
)
def test_a_file_is_recognized_by_its_content(tmp_path, kind, content, ours):
    (tmp_path / "file").write_bytes(content)
    assert kind.matches(tmp_path / "file") is ours


def test_a_foreign_file_is_neither_written_nor_removed(tmp_path):
    file = tmp_path / "file.json"
    file.write_text("[1]")
    words = r"file\.json: exists, and qcompress did not write it; move it away, or use another --reference-cache"
    kind = json_kind("facts", option="--reference-cache")
    for action in (lambda: kind.remove(file), lambda: write_atomic(file, b"new", kind=kind)):
        with pytest.raises(QCompressError, match=words):
            action()
    assert [path.read_text() for path in tmp_path.iterdir()] == ["[1]"]


def test_an_own_file_is_replaced_and_removed(tmp_path):
    file = tmp_path / "file.json"
    for text in (b'{"facts": 1, "counts": 2}', b'{"facts": 3, "counts": 4}'):
        write_atomic(file, text, kind=OBJECT)
        assert file.read_bytes() == text
    OBJECT.remove(file)
    OBJECT.remove(file)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_no_file_of_any_kind(tmp_path):
    assert not WORK_FILE.matches(tmp_path) and WORK_FILE.matches(tmp_path / "missing")
