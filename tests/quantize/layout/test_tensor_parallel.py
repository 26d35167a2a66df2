"""Group sizes that divide over several GPUs, and MLPs that are padded with zeros without a change of the outputs."""

import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from compress.checkpoint.check.run import check_checkpoint, error_rows
from compress.checkpoint.load import load_model, open_causal_lm
from compress.checkpoint.padding import pad_mlp
from compress.checkpoint.read import Checkpoint
from compress.core.config import QuantizeConfig
from compress.core.errors import QCompressError
from compress.model.blocks import load_all
from compress.quantize.job import quantize_checkpoint
from compress.quantize.layout.budget import plan_layouts
from compress.quantize.layout.job_plan import plan_quantize
from compress.quantize.layout.plan import checkpoint_source
from compress.quantize.layout.tensor_parallel import legal_group_sizes
from tests.conftest import SHAPE

SIZES = SHAPE | {"hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.fixture(scope="module")
def narrow(tmp_path_factory, save_model):
    """A llama of which 192 channels over 2 GPUs are 3 groups of 32, and no group of 64."""
    model = LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True, mlp_bias=True))
    return save_model(model, tmp_path_factory.mktemp("narrow") / "llama", seed=3)


@pytest.mark.parametrize(
    ("name", "inn", "ranks", "sizes"),
    [
        ("model.layers.0.mlp.down_proj", 6912, 1, [128, 64, 32]),
        ("model.layers.0.mlp.down_proj", 6912, 4, [64, 32]),
        ("model.layers.0.mlp.down_proj", 8960, 4, [64, 32]),
        ("model.layers.0.mlp.gate_proj", 1536, 4, [128, 64, 32]),
        ("model.layers.0.self_attn.o_proj", 1536, 4, [128, 64, 32]),
        ("model.layers.0.mlp.down_proj", 96, 2, []),
    ],
)
def test_only_row_parallel_inputs_are_divided_over_the_ranks(name, inn, ranks, sizes):
    assert legal_group_sizes({name: (64, inn)}, ranks) == sizes


def test_plan_proposes_only_groups_that_divide_and_pass_check(narrow):
    source = checkpoint_source(open_causal_lm(narrow))
    config = QuantizeConfig(method="rtn", tensor_parallel_size=2)
    sizes = {layout.group_size for layout, _ in plan_layouts(source, config, ["gptq"])}
    assert sizes == {32} and {one.group_size for one, _ in plan_layouts(source, QuantizeConfig(), ["gptq"])} == {64, 32}


def test_a_padded_model_computes_the_same_logits(narrow):
    checkpoint = open_causal_lm(narrow)
    padded = pad_mlp(checkpoint, 256)
    ids = torch.arange(4, 68).view(2, 32)
    with torch.no_grad():
        expected = load_model(checkpoint)(ids).logits
        logits = load_all(padded.config, padded.tensor, torch.float32)(ids).logits
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    assert padded.tensor("model.layers.0.mlp.down_proj.weight")[:, 192:].abs().max() == 0


@pytest.mark.parametrize("method", ["rtn", "gptq", "awq+gptq"])
def test_groups_that_do_not_divide_are_padded_with_exact_zeros(narrow, tmp_path, method):
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog " * 100)
    config = QuantizeConfig(
        method=method, text=(str(text),), samples=4, seq_len=32, group_size=64, tensor_parallel_size=2
    )
    row = quantize_checkpoint(narrow, tmp_path / "out", config)
    assert row["padded"] == "intermediate_size 192 to 256" and row["padding_bytes"] > 0
    assert json.loads((tmp_path / "out/config.json").read_text())["intermediate_size"] == 256
    assert not error_rows(check_checkpoint(tmp_path / "out", tensor_parallel_size=2, source=narrow))
    model = load_model(tmp_path / "out")
    mlp = model.model.layers[0].mlp
    assert mlp.down_proj.weight[:, 192:].abs().max() == 0 and mlp.gate_proj.weight[192:].abs().max() == 0
    assert Checkpoint(tmp_path / "out").record["settings"]["tensor_parallel_size"] == 2


def test_groups_that_divide_are_not_padded(narrow):
    checkpoint, plan = plan_quantize(narrow, QuantizeConfig(method="rtn", tensor_parallel_size=2))
    assert plan.scheme.group_size == 32 and checkpoint.config["intermediate_size"] == 192


@pytest.mark.parametrize("ranks", [3, 8])
def test_heads_that_do_not_divide_are_refused(narrow, ranks):
    with pytest.raises(QCompressError, match=f"tensor-parallel-size {ranks}: 4 heads"):
        plan_quantize(narrow, QuantizeConfig(method="rtn", tensor_parallel_size=ranks))
