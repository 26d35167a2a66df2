import hashlib
import os
import subprocess

import pytest

from compress.core.errors import QCompressError
from compress.ship.bundle.sums import RECEIPT, SUMS, check_sums, write_sums


@pytest.fixture
def folder(tmp_path):
    """A folder with three files and their digests."""
    (tmp_path / "model").mkdir()
    for name in ("a.txt", "model/b c.bin", "model/ä.json"):
        (tmp_path / name).write_text(name)
    write_sums(tmp_path)
    return tmp_path


def test_sha256sum_reads_the_file_and_finds_every_other_file(folder):
    result = subprocess.run(["sha256sum", "--check", "--strict", SUMS], cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0 and result.stdout.count(": OK\n") == 3
    assert check_sums(folder) == []


def test_the_receipt_of_the_device_is_no_further_file(folder):
    (folder / RECEIPT).write_text("{}")
    assert check_sums(folder) == []


def change(folder):
    (folder / "a.txt").write_text("other")


def remove(folder):
    (folder / "a.txt").unlink()


def add(folder):
    (folder / "a.txt").with_name(".hidden").write_text("")


def link(folder):
    (folder / "a.txt").rename(folder / "model" / "b c.bin")
    (folder / "a.txt").symlink_to("model/b c.bin")


def pipe(folder):
    os.mkfifo(folder / "model" / "pipe")


@pytest.mark.parametrize(
    ("damage", "file", "fault"),
    [
        (change, "a.txt", "another content"),
        (remove, "a.txt", "is missing"),
        (add, ".hidden", "is not listed"),
        (link, "a.txt", "is a link"),
        (pipe, "model/pipe", "is not a regular file"),
    ],
)
def test_each_damage_is_found(folder, damage, file, fault):
    damage(folder)
    assert (file, True) in [(name, fault in text) for name, text in check_sums(folder)]


@pytest.mark.parametrize("name", ["../outside.txt", "/etc/hostname", "model/../a.txt", "./a.txt", "model//b c.bin"])
def test_a_listed_path_that_is_not_plain_is_a_fault(folder, name):
    (folder.parent / "outside.txt").write_text("")
    with (folder / SUMS).open("a") as file:
        file.write(f"{hashlib.sha256(b'').hexdigest()}  {name}\n")
    assert check_sums(folder) == [(name, f"is listed in {SUMS}, but leads outside the bundle")]


@pytest.mark.parametrize("line", ["abc  a.txt", f"{'0' * 64} a.txt", f"{'0' * 64}  ", "\n"])
def test_a_malformed_line_is_named_by_its_number(folder, line):
    with (folder / SUMS).open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(QCompressError, match="SHA256SUMS: line 4 is not"):
        check_sums(folder)


def test_a_file_that_is_listed_twice_is_refused(folder):
    with (folder / SUMS).open("a") as file:
        file.write(f"{'0' * 64}  a.txt\n")
    with pytest.raises(QCompressError, match="or repeats a file"):
        check_sums(folder)


def test_a_folder_without_sums_is_no_bundle(tmp_path):
    with pytest.raises(QCompressError, match="SHA256SUMS: missing; give a folder that qcompress ship wrote"):
        check_sums(tmp_path)


@pytest.mark.parametrize("name", ["line\nbreak", "back\\slash"])
def test_a_name_that_sha256sum_escapes_is_not_listed(tmp_path, name):
    (tmp_path / name).write_text("")
    with pytest.raises(QCompressError, match="sha256sum escapes"):
        write_sums(tmp_path)
