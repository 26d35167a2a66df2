"""Held-out windows: the same for every command, and a start token that belongs to the model."""

import json
import shutil

import pytest
import torch

from calibration.errors import CalibrationError
from calibration.windows import build_windows
from compress.checkpoint import heldout
from compress.checkpoint.heldout import heldout_start, heldout_windows, measure_start, recorded_start
from compress.checkpoint.load import load_model
from compress.checkpoint.read import Checkpoint
from compress.checkpoint.start import measure_start as measure_in_memory
from compress.core.config import QuantizeConfig
from compress.distill.config import DistillConfig
from compress.distill.job import distill_checkpoint
from compress.quantize.job import quantize_checkpoint


@pytest.fixture
def tokenizer(tiny_llama):
    return Checkpoint(tiny_llama).tokenizer


def test_the_start_token_is_the_same_block_by_block_as_on_a_whole_model(tiny_llama, tokenizer):
    ids = build_windows(["default"], tokenizer, n_samples=16, seq_len=128).ids
    whole = measure_in_memory(load_model(tiny_llama), tokenizer, ids)
    found = measure_start(Checkpoint(tiny_llama))
    assert found["token"] == whole.token
    assert found["nll_with"] == pytest.approx(whole.nll_with, rel=1e-5)
    assert found["nll_without"] == pytest.approx(whole.nll_without, rel=1e-5)


def test_the_start_token_of_an_open_checkpoint_is_measured_once(tiny_llama, monkeypatch):
    checkpoint = Checkpoint(tiny_llama)
    first = heldout_start(checkpoint)
    monkeypatch.setattr(heldout, "measure_start", None)
    assert heldout_start(checkpoint) == first
    with pytest.raises(TypeError):
        heldout_start(Checkpoint(tiny_llama))


def test_a_student_and_its_quantized_form_inherit_the_teachers_start_token(tiny_llama, tmp_path):
    start = {"token": 1, "nll_with": 1.0, "nll_without": 2.0}
    teacher, student, small = (tmp_path / name for name in ("teacher", "student", "small"))
    shutil.copytree(tiny_llama, teacher)
    (teacher / "qcompress.json").write_text(json.dumps({"start": start}))
    distill_checkpoint(teacher, student, DistillConfig(blocks=1, steps=2, seq_len=32))
    quantize_checkpoint(student, small, QuantizeConfig(method="gptq", samples=4, seq_len=32))
    assert recorded_start(Checkpoint(student)) == recorded_start(Checkpoint(small)) == start


def test_plain_rounding_reads_no_text_and_copies_what_its_source_recorded(tiny_llama, tmp_path):
    quantize_checkpoint(tiny_llama, tmp_path / "rtn", QuantizeConfig(method="rtn"))
    assert recorded_start(Checkpoint(tmp_path / "rtn")) is None


@pytest.mark.parametrize(("sentences", "shape"), [(400, (24, 64)), (30, (9, 64)), (1, (1, 16))])
def test_a_shorter_text_gives_fewer_and_then_shorter_windows(tokenizer, tmp_path, sentences, shape):
    (tmp_path / "text.txt").write_text("The fox asks; the dog answers.\n" * sentences)
    windows = heldout_windows(str(tmp_path / "text.txt"), tokenizer, None, seq_len=64, fit=True)
    assert windows.ids.shape == shape


def test_a_text_that_is_too_short_is_an_error_unless_it_may_fit(tokenizer, tmp_path):
    (tmp_path / "text.txt").write_text("The fox asks.")
    with pytest.raises(CalibrationError, match="tokens, but"):
        heldout_windows(str(tmp_path / "text.txt"), tokenizer, None)
    (tmp_path / "text.txt").write_text("a")
    with pytest.raises(CalibrationError, match="a window needs 8"):
        heldout_windows(str(tmp_path / "text.txt"), tokenizer, None, fit=True)


def test_the_windows_are_those_of_the_packed_text(tokenizer):
    plain = build_windows(["heldout"], tokenizer, n_samples=24, seq_len=512, start_token=1)
    assert torch.equal(heldout_windows("heldout", tokenizer, 1).ids, plain.ids)
