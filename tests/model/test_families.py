"""The table of families on tiny random models: stages, residual norms, and feeders that absorb a scale exactly."""

import copy

import pytest
import torch

from calibration.capture import watch_inputs
from compress.checkpoint.read import Checkpoint
from compress.model.blocks import BlockModel, find_linears
from compress.model.families import FAMILIES, REFUSED, find_family
from compress.quantize.blocks.block import stages_of
from compress.quantize.methods.fold import fold_norm, per_row
from scripts.tiny_models import TINY, save_tiny

STAGED = sorted({name for family in FAMILIES if family.stages for name in family.model_types} & TINY.keys())
CHANGES = {"granite": {"residual_multiplier": 0.5}}


@pytest.fixture(scope="module", params=STAGED)
def model(request, tmp_path_factory):
    """A tiny model of a family, block by block, and the states of a few tokens."""
    folder = tmp_path_factory.mktemp("family") / request.param
    save_tiny(request.param, folder, dtype=torch.float32, **CHANGES.get(request.param, {}))
    checkpoint = Checkpoint(folder)
    blocks = BlockModel(checkpoint.config, checkpoint.tensor)
    with blocks.embedding_and_norm():
        hidden = blocks.embed(torch.arange(8, 72).view(2, 32))
    return blocks, hidden


def run(model, block, index):
    """The inputs of the block's linears and norms, its output, and the outputs of its linears."""
    inputs, (blocks, hidden) = {}, model
    norms = {path: module for path, module in block.module.named_children() if "norm" in path}
    with torch.no_grad(), watch_inputs(block.linears | norms, inputs.__setitem__):
        output = blocks.runner(block, index)(hidden)
    products = {name: linear(inputs[name]) for name, linear in block.linears.items()}
    return inputs, output, products


def test_every_listed_family_has_a_tiny_model():
    listed = {name for family in FAMILIES for name in family.model_types} - {"bamba", "qwen3_5_moe_text", "falcon_h1"}
    assert listed | REFUSED.keys() - {"gemma3n_text"} <= TINY.keys() and not listed & REFUSED.keys()


def test_the_stages_of_a_family_contain_each_linear_once(model):
    blocks, hidden = model
    for index in range(len(blocks)):
        with blocks.block(index) as block:
            staged = [name for stage in block.stages for name in stage.linears]
            skipped = [name for name in find_linears(block.module) if blocks.family.skips(name)]
            assert sorted(staged) == sorted(block.linears) and not set(skipped) & set(staged)
            traced = stages_of(copy.copy(block), blocks.runner(block, index), hidden)
            assert {stage.linears for stage in traced} == {stage.linears for stage in block.stages}


def test_linears_of_a_stage_have_the_same_input(model):
    blocks, _ = model
    for index in range(len(blocks)):
        with blocks.block(index) as block:
            inputs, _, _ = run(model, block, index)
            for stage in block.stages:
                assert all(inputs[name].equal(inputs[stage.linears[0]]) for name in stage.linears)


@torch.no_grad()
def test_stages_with_a_residual_norm_add_their_output_unscaled(model):
    blocks, _ = model
    for index in range(len(blocks)):
        with blocks.block(index) as block:
            inputs, output, products = run(model, block, index)
        adding = [stage for stage in block.stages if stage.residual]
        for stage in adding:
            later = adding[adding.index(stage) + 1 :]
            after = inputs[later[0].residual] if later else output
            torch.testing.assert_close(after, inputs[stage.residual] + products[stage.linears[0]], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_feeder_absorbs_a_scale_of_the_inputs_exactly(model):
    blocks, _ = model
    config = blocks.model.config
    heads = config.num_attention_heads
    shared, width = heads // (config.num_key_value_heads or heads), getattr(config, "head_dim", None)
    for index in range(len(blocks)):
        with blocks.block(index) as block:
            _, expected, _ = run(model, block, index)
            for stage in block.stages:
                if stage.feeder is not None:
                    scale_inputs(block, stage, shared, width or config.hidden_size // heads)
            _, output, _ = run(model, block, index)
            torch.testing.assert_close(output, expected, atol=1e-4, rtol=1e-3)


def scale_inputs(block, stage, shared, width):
    """Multiply the stage's input channels, and divide the feeder's outputs."""
    inn = block.linears[stage.linears[0]].in_features
    scale = torch.rand(inn, generator=torch.Generator().manual_seed(inn)) + 0.5
    if stage.feeder.kind == "heads" and shared > 1:
        scale = scale.view(-1, shared, width)[:, :1].expand(-1, shared, width).reshape(-1)
    for name in stage.linears:
        block.linears[name].weight.mul_(scale)
    if stage.feeder.kind == "norm":
        weight = block.module.get_parameter(f"{stage.feeder.module}.weight")
        weight.copy_(fold_norm(weight, scale, stage.feeder.offset))
        return
    rows = per_row(scale, stage.feeder, shared, width)
    feeder = block.linears[stage.feeder.module]
    feeder.weight[-len(rows) :] /= rows[:, None]
    if feeder.bias is not None:
        feeder.bias[-len(rows) :] /= rows


def test_a_convolution_with_a_bias_absorbs_no_scale(tmp_path):
    save_tiny("lfm2", tmp_path / "model", conv_bias=True)
    checkpoint = Checkpoint(tmp_path / "model")
    blocks = BlockModel(checkpoint.config, checkpoint.tensor)
    with blocks.block(0) as block:
        feeders = {stage.linears[0]: stage.feeder for stage in block.stages}
    assert feeders["conv.out_proj"] is None and find_family("lfm2").stages[3].feeder is not None
