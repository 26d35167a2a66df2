import shutil

import pytest

from compress.checkpoint.digest import small_files_digest, weights_digest
from compress.checkpoint.read import Checkpoint
from compress.core.errors import QCompressError


def test_digests_without_torch_are_those_of_the_opened_checkpoint(tiny_llama):
    checkpoint = Checkpoint(tiny_llama)
    assert weights_digest(tiny_llama) == checkpoint.digest
    assert small_files_digest(tiny_llama) == checkpoint.small_files_digest


def test_each_digest_covers_its_own_files(tiny_llama, tmp_path):
    path = shutil.copytree(tiny_llama, tmp_path / "copy")
    before = weights_digest(path), small_files_digest(path)
    (path / "tokenizer_config.json").write_text("{}")
    assert weights_digest(path) == before[0] and small_files_digest(path) != before[1]
    (path / "config.json").write_text("{}")
    assert weights_digest(path) != before[0]


def test_a_missing_folder_or_config_is_one_line(tiny_llama, tmp_path):
    with pytest.raises(QCompressError, match="no such directory"):
        weights_digest(tmp_path / "gone")
    path = shutil.copytree(tiny_llama, tmp_path / "copy")
    (path / "config.json").unlink()
    with pytest.raises(QCompressError, match=r"config.json: missing; give a folder that contains config.json"):
        weights_digest(path)
