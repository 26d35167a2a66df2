import shutil

from compress.checkpoint.read import Checkpoint
from compress.ship.bundle.licenses import write_licenses


def test_texts_are_copied_and_unknown_licences_are_called_unknown(tiny_awq, tmp_path):
    folder = shutil.copytree(tiny_awq, tmp_path / "awq")
    (folder / "LICENSE").write_text("Apache License\nVersion 2.0")
    (folder / "NOTICE").write_text("notice")
    write_licenses(Checkpoint(folder), tmp_path)
    place = tmp_path / "LICENSES"
    assert (place / "LICENSE").read_text() == (folder / "LICENSE").read_text()
    text = (place / "README.md").read_text()
    assert "| this model | awq | apache-2.0 |" in text and "| base | llama | unknown |" in text
    assert "Texts that came with the model: LICENSE, NOTICE." in text
