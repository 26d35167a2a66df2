import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from calibration.capture import watch_inputs
from compress.model.blocks import BlockModel
from compress.model.families import FAMILIES

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "initializer_range": 0.3,
}
MODEL_TYPES = sorted({name for family in FAMILIES for name in family.model_types})


def run_block(model_type):
    """Run a random block. Returns its stages, the inputs of linears and norms, its output, and outputs of linears.

    Inputs and outputs are stored by the path of the module.
    """
    factor = {"residual_multiplier": 0.5} if model_type == "granite" else {}
    config = AutoConfig.for_model(model_type, **SIZES, **factor)
    torch.manual_seed(0)
    weights = AutoModelForCausalLM.from_config(config, dtype=torch.float32).state_dict()
    blocks, inputs = BlockModel(config.to_dict(), weights.__getitem__), {}
    with blocks.embedding_and_norm():
        hidden = blocks.embed(torch.arange(12).view(2, 6))
    with blocks.block(0) as block:
        norms = {path: module for path, module in block.module.named_children() if "norm" in path}
        with watch_inputs(block.linears | norms, inputs.__setitem__):
            output = blocks.runner(block, 0)(hidden)
        products = {name: block.linears[name](inputs[name]) for name in block.linears}
    return block.stages, inputs, output, products


@torch.no_grad()
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_stages_with_a_residual_norm_add_their_output_unscaled(model_type):
    stages, inputs, output, products = run_block(model_type)
    states = [*(tensor for path, tensor in inputs.items() if path not in products), output]
    adding = [stage for stage in stages if stage.residual]
    for stage in stages:
        product = products[stage.linears[0]]
        if stage.residual:
            later = adding[adding.index(stage) + 1 :]
            after = inputs[later[0].residual] if later else output
            torch.testing.assert_close(after, inputs[stage.residual] + product)
            continue
        is_added = any(
            before.shape == product.shape == after.shape and torch.allclose(after, before + product, atol=1e-4)
            for before in states
            for after in states
        )
        assert not is_added, stage.linears
