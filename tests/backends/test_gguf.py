"""A backend that writes a .gguf file: what it gets, and how its result is stored and measured."""

import re
import sys
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

import compress.backends.table as table
from compress.backends.job import BackendRun, quantize_with_backend
from compress.checkpoint.check.run import check_checkpoint
from compress.checkpoint.read import Checkpoint
from compress.core.backend_config import BackendConfig
from compress.core.errors import QCompressError
from compress.evaluate.drift.compare import describe
from tests.ship.gguf.test_export import MODELS, SIZES, write_tokenizer

gguf = pytest.importorskip("gguf")
DRIVER = """\
# /// script
# requires-python = ">=3.9"
# dependencies = []
# ///
import shutil
from pathlib import Path

def quantize(request, windows, report):
    Path(request["out"]).mkdir()
    report(Path(request["windows.txt"]).read_text()[:60])
    shutil.copy(request["source.gguf"], request["out"] + "/{name}")
    return 2.0
"""
CONFIG = BackendConfig(backend="llama.cpp", method="Q4_0", samples=2, seq_len=16)


@pytest.fixture(scope="module")
def model(tmp_path_factory, save_model):
    """A tiny llama whose tokenizer a .gguf file can store."""
    config = LlamaConfig(**SIZES | {"tie_word_embeddings": False} | MODELS["llama"])
    folder = save_model(LlamaForCausalLM(config), tmp_path_factory.mktemp("model") / "llama", seed=3)
    write_tokenizer(folder)
    return folder


def place(folder, name, monkeypatch):
    """A driver of llama.cpp that does not quantize: it copies the 16-bit .gguf file that it gets."""
    folder.mkdir()
    (folder / "llama_cpp.py").write_text(DRIVER.format(name=name))
    (folder / "llama_cpp.lock").write_text("")
    monkeypatch.setattr(table, "DRIVERS", folder)
    monkeypatch.delitem(table.BACKENDS["llama.cpp"].__dict__, "pins", raising=False)


def test_a_gguf_file_is_kept_dequantized_and_measured_by_its_size(model, tmp_path, monkeypatch):
    place(tmp_path / "drivers", "model.gguf", monkeypatch)
    rows = []
    run = BackendRun(python=Path(sys.executable), report=rows.append)
    row = quantize_with_backend(model, tmp_path / "out", CONFIG, run)
    result, size = Checkpoint(tmp_path / "out"), (tmp_path / "out" / "model.gguf").stat().st_size
    assert (row["format"], row["group_size"], row["bytes"], row["bits_per_weight"]) == ("gguf", None, size, 16.0)
    assert any(re.search("[a-z]{3}", str(one.get("backend"))) for one in rows)
    source = Checkpoint(model)
    assert all(result.tensor(name).equal(source.tensor(name)) for name in source.tensors)
    assert [row for row in check_checkpoint(result.path, source=model) if row["level"] == "error"] == []
    described = describe(result, "out", "candidate")
    assert (described["format"], described["method"], described["bytes"]) == ("gguf", "llama.cpp Q4_0", size)


def test_a_backend_that_writes_no_gguf_file_is_one_line(model, tmp_path, monkeypatch):
    place(tmp_path / "drivers", "other.bin", monkeypatch)
    with pytest.raises(QCompressError, match=r"the backend wrote no model\.gguf"):
        quantize_with_backend(model, tmp_path / "out", CONFIG, BackendRun(python=Path(sys.executable)))
    assert not (tmp_path / "out").exists()
