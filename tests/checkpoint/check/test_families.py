"""Healthy checkpoints of every family, quantized by every method and layout, have no findings but those on shapes."""

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from compress.checkpoint import vllm_models
from compress.checkpoint.check.run import check_checkpoint
from compress.checkpoint.read import RECORD
from compress.checkpoint.record import DIGESTS
from compress.core.config import QuantizeConfig
from compress.model.architectures import ARCHITECTURES
from compress.quantize.auto import quantize

pytestmark = pytest.mark.slow  # runs whole jobs

MODEL_TYPES = sorted({*ARCHITECTURES} - {"ministral"})  # not in vLLM
SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 128, "head_dim": 16}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
SPECIAL = {"bos_token_id": 1, "eos_token_id": 3, "pad_token_id": 3}


@pytest.fixture(scope="module")
def source(save_model, tmp_path_factory):
    """source(model_type): a plain checkpoint of a family, made once."""
    folder = tmp_path_factory.mktemp("families")

    def make(model_type: str) -> Path:
        path = folder / model_type
        if not path.exists():
            dtype = torch.bfloat16 if model_type in vllm_models.NO_FLOAT16 else torch.float16
            config = AutoConfig.for_model(model_type, **SIZES, **HEADS, **SPECIAL)
            save_model(AutoModelForCausalLM.from_config(config), path, 0, dtype)
        return path

    return make


def found(path: Path, **options) -> list[dict]:
    return [row for row in check_checkpoint(path, **options) if row["rule"] != "T4"]


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_plain_checkpoint_has_no_findings(source, model_type):
    path = source(model_type)
    assert found(path) == [] and found(path, source=path) == []


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize(("method", "layout"), [("awq", "awq"), ("gptq", "gptq"), ("awq+gptq", "compressed-tensors")])
def test_a_quantized_checkpoint_has_no_findings(source, tmp_path, model_type, method, layout):
    config = QuantizeConfig(method=method, format=layout, group_size=32, samples=4, seq_len=32)
    quantize(source(model_type), tmp_path / "out", config)
    assert found(tmp_path / "out", source=source(model_type)) == []
    other_tool = Path(shutil.copytree(tmp_path / "out", tmp_path / "other"))
    for name in (DIGESTS, RECORD):
        (other_tool / name).unlink()
    assert found(other_tool) == [] and found(other_tool, source=source(model_type)) == []
