"""Digests that are read again only after a change."""

import pytest

from compress.core.errors import QCompressError
from compress.pipeline.digests import Digests


def test_a_file_is_read_again_only_after_a_change(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("one")
    first = Digests()
    value = first.file(file)
    marked = {str(file): first.files[str(file)] | {"digest": "sha256:stored"}}
    assert Digests(marked).file(file) == "sha256:stored"
    file.write_text("two")
    assert Digests(marked).file(file) not in ("sha256:stored", value)


def test_a_file_with_restored_size_and_time_is_read_again(tmp_path):
    import os

    file = tmp_path / "a.txt"
    file.write_text("one")
    stored = Digests()
    value, times = stored.file(file), file.stat()
    file.write_text("two")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert Digests(stored.files).file(file) != value


@pytest.mark.parametrize("name", ["tokenizer.json", "model.safetensors", "chat_template.jinja"])
def test_every_file_of_a_checkpoint_changes_its_digest(tmp_path, name):
    for file in ("config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"):
        (tmp_path / file).write_text("{}")
    before = Digests().checkpoint(tmp_path)
    (tmp_path / name).write_text("{ }")
    assert Digests().checkpoint(tmp_path) != before


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(QCompressError, match="gone: no such directory"):
        Digests().checkpoint(tmp_path / "gone")


def test_the_weight_of_a_text_is_no_part_of_its_name(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("one")
    assert Digests().text(f"{file}=2.5") == Digests().text(str(file))
