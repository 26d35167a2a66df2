import errno
import os
from pathlib import Path

import pytest

from compress.core.atomic import CAUSES, MISSING, cause_of, file_errors, write_atomic
from compress.core.errors import QCompressError
from compress.core.file_kind import WORK_FILE

FULL_DEVICE = Path("/dev/full")


def test_a_file_is_replaced_whole_and_leaves_no_partial_file(tmp_path):
    write_atomic(tmp_path / "a.txt", b"one", b"two", kind=WORK_FILE)
    write_atomic(tmp_path / "a.txt", b"three", kind=WORK_FILE)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.txt", b"three")]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_fails_keeps_the_old_file(tmp_path, monkeypatch, error):
    def fail(descriptor):
        raise error

    write_atomic(tmp_path / "a.txt", b"old", kind=WORK_FILE)
    monkeypatch.setattr("compress.core.atomic.os.fsync", fail)
    with pytest.raises((QCompressError, KeyboardInterrupt)) as caught:
        write_atomic(tmp_path / "a.txt", b"new", kind=WORK_FILE)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.txt", b"old")]
    if isinstance(error, OSError):
        assert str(caught.value).startswith(f"{tmp_path / 'a.txt'}: the disk is full, ")


@pytest.mark.skipif(not FULL_DEVICE.exists(), reason="no /dev/full")
def test_a_full_disk_is_one_line_with_free_bytes_and_the_kept_work(tmp_path):
    words = r"x: the disk is full, [\d.,]+ .?B free; make room .* again, all is kept"
    kept = file_errors(tmp_path / "x", "all is kept")
    with pytest.raises(QCompressError, match=words), kept, FULL_DEVICE.open("wb", buffering=0) as file:
        file.write(b"x")


@pytest.mark.parametrize("number", [*CAUSES, *MISSING])
def test_every_cause_outside_of_the_program_is_one_line_with_the_path(tmp_path, number):
    with pytest.raises(QCompressError) as caught, file_errors(tmp_path / "x"):
        raise OSError(number, os.strerror(number), "inner")
    line = str(caught.value)
    assert line.startswith(f"{tmp_path / 'x'}: ") and "; " in line and "[Errno" not in line and "\n" not in line


def test_an_error_without_a_known_cause_stays_what_it_is(tmp_path):
    with pytest.raises(OSError, match="Invalid argument"), file_errors(tmp_path / "x"):
        raise OSError(errno.EINVAL, "Invalid argument")


def test_a_missing_file_counts_as_a_bug_where_no_path_is_at_hand():
    assert cause_of(FileNotFoundError(errno.ENOENT, "No such file", "x")) is None
    assert str(cause_of(PermissionError(errno.EACCES, "Permission denied", "x"))).startswith("x: permission denied")
    assert cause_of(PermissionError(errno.EACCES, "Permission denied")) is None
