import shutil

import pytest

from compress.checkpoint.read import Checkpoint
from compress.core.errors import QCompressError
from compress.ship.bundle.model_files import model_files


@pytest.fixture
def folder(tiny_awq, tmp_path):
    return shutil.copytree(tiny_awq, tmp_path / "awq")


def names(folder):
    return {file.name for file in model_files(Checkpoint(folder))}


def test_licences_come_along_and_foreign_files_do_not(folder):
    before = names(folder)
    (folder / "LICENSE.txt").write_text("terms")
    (folder / "USE_POLICY.md").write_text("policy")
    for name in (".secret", "notes.txt", "code.py", "weights.bin"):
        (folder / name).write_text("")
    assert names(folder) == before | {"LICENSE.txt", "USE_POLICY.md"}
    assert before == {path.name for path in folder.iterdir()} - {
        *("LICENSE.txt", "USE_POLICY.md", ".secret", "notes.txt", "code.py", "weights.bin")
    }


def test_a_link_that_leads_outside_is_refused(folder, tmp_path):
    (tmp_path / "secret").write_text("secret")
    (folder / "NOTICE").symlink_to(tmp_path / "secret")
    with pytest.raises(QCompressError, match="NOTICE: is a link that leads outside"):
        model_files(Checkpoint(folder))


def test_a_listed_name_that_leads_outside_is_refused(folder, tmp_path):
    (tmp_path / "secret").write_text("secret")
    text = (folder / "qcompress.sha256.json").read_text()
    (folder / "qcompress.sha256.json").write_text(text.replace('"README.md"', '"../secret"'))
    with pytest.raises(QCompressError, match="secret leads outside"):
        model_files(Checkpoint(folder))
