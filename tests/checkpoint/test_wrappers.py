"""Language models inside multimodal ones: what is read, what is copied, and what is written."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from compress.checkpoint.check.run import check_checkpoint, error_rows
from compress.checkpoint.load import load_model
from compress.checkpoint.read import Checkpoint
from compress.core.config import QuantizeConfig
from compress.quantize.job import quantize_checkpoint
from scripts.tiny_models import WRAPPED, save_tiny

IDS = torch.arange(8, 72).view(2, 32)
RTN = QuantizeConfig(method="rtn", format="compressed-tensors")


@pytest.fixture(scope="module", params=WRAPPED)
def wrapped(request, tmp_path_factory):
    """A tiny multimodal model with a processor file, and its logits for text."""
    folder = tmp_path_factory.mktemp("wrapped") / request.param
    model = save_tiny(request.param, folder).float()
    (folder / "preprocessor_config.json").write_text('{"image_mean": [0.5]}')
    with torch.no_grad():
        return folder, model(IDS, use_cache=False).logits


@torch.no_grad()
def test_the_language_model_inside_a_wrapper_computes_its_logits(wrapped):
    folder, expected = wrapped
    torch.testing.assert_close(load_model(folder)(IDS, use_cache=False).logits, expected, atol=3e-3, rtol=1e-2)
    checkpoint = Checkpoint(folder)
    assert checkpoint.carried and all(
        checkpoint.naming.in_file(name) in checkpoint.stored for name in checkpoint.tensors
    )


def test_all_other_tensors_and_files_are_copied_byte_for_byte(wrapped, tmp_path):
    folder, _ = wrapped
    quantize_checkpoint(folder, tmp_path / "out", RTN)
    source, out = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "out"))
    carried = Checkpoint(folder).carried
    assert all(out[name].dtype == source[name].dtype and out[name].equal(source[name]) for name in carried)
    assert (tmp_path / "out/preprocessor_config.json").read_text() == '{"image_mean": [0.5]}'
    config, written = (json.loads((path / "config.json").read_text()) for path in (folder, tmp_path / "out"))
    assert written["architectures"] == config["architectures"] and written["vision_config"] == config["vision_config"]
    assert not error_rows(check_checkpoint(tmp_path / "out", source=folder))


def test_one_changed_byte_of_a_carried_tensor_is_reported(wrapped, tmp_path):
    folder, _ = wrapped
    quantize_checkpoint(folder, tmp_path / "out", RTN)
    file = tmp_path / "out/model.safetensors"
    tensors = load_file(file)
    tensors[min(Checkpoint(folder).carried)].view(-1)[0] += 1
    save_file(tensors, file, metadata={"format": "pt"})
    assert "D1" in {row["rule"] for row in check_checkpoint(tmp_path / "out")}


@torch.no_grad()
def test_text_only_writes_a_causal_language_model(wrapped, tmp_path):
    folder, _ = wrapped
    quantize_checkpoint(folder, tmp_path / "out", QuantizeConfig(method="rtn", text_only=True))
    out = Checkpoint(tmp_path / "out")
    assert out.stored_config["architectures"][0].endswith("ForCausalLM") and not out.carried
    assert not (tmp_path / "out/preprocessor_config.json").exists()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    expected = load_model(tmp_path / "out")(IDS, use_cache=False).logits
    torch.nn.Module.float(model)  # some parameters keep their dtype; model.float() is refused for quantized models
    torch.testing.assert_close(model(IDS, use_cache=False).logits, expected, atol=1e-3, rtol=1e-3)
