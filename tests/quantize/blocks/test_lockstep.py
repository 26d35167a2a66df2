import pytest
import torch

from calibration.capture import watch_inputs
from calibration.statistics import Hessian
from compress.checkpoint.formats import weight_reader
from compress.checkpoint.read import Checkpoint
from compress.core.grid import Scheme
from compress.model.architectures import ARCHITECTURES
from compress.model.blocks import BlockModel
from compress.model.families import LLAMA
from compress.quantize.blocks.block import quantize_block
from compress.quantize.blocks.lockstep import BlockPass, lockstep, replay, trace_stages
from compress.quantize.blocks.problem import BlockSettings

SETTINGS = {
    "scheme": Scheme(group_size=32),
    "damp_percent": 0.01,
    "error_correction": 0.0,
    "query_heads_per_kv_head": 2,
    "head_dim": 16,
}


@pytest.fixture(params=["tiny_llama", "tiny_qwen2"])
def embedded(request):
    """A block model and its first block's input: 6 windows of 64 tokens, as micro-batches of 2."""
    checkpoint = Checkpoint(request.getfixturevalue(request.param))
    blocks = BlockModel(checkpoint.config, weight_reader(checkpoint))
    ids = torch.randint(0, 128, (6, 64), generator=torch.Generator().manual_seed(0))
    with blocks.embedding_and_norm():
        return blocks, [blocks.embed(part) for part in ids.split(2)]


SCHEDULES = pytest.mark.parametrize("schedule", [lockstep, replay])


@torch.no_grad()
@SCHEDULES
def test_a_pass_without_changes_is_the_plain_forward_pass(embedded, schedule):
    blocks, batches = embedded
    with blocks.block(0) as block:
        run = blocks.runner(block, 0)
        outputs = [None] * len(batches)
        work = BlockPass(block, [stage.linears for stage in LLAMA], run, batches, outputs)
        schedule(work, lambda stage, inputs: list(inputs))
        assert all(torch.equal(output, run(batch)) for output, batch in zip(outputs, batches, strict=True))


@torch.no_grad()
@SCHEDULES
def test_every_stage_reads_the_outputs_of_quantized_stages(embedded, schedule):
    """The inputs are compared with those of a second model, whose whole block runs again after each stage."""
    blocks, batches = embedded
    twin = BlockModel(blocks.model.config.to_dict(), blocks.weights)
    with twin.embedding_and_norm():
        twin.prepare([(2, 64)])
    with blocks.block(0) as block, twin.block(0) as slow:

        def check(stage, inputs):
            expected = []
            with watch_inputs({stage[0]: slow.linears[stage[0]]}, lambda name, x: expected.append(x)):
                for batch in batches:
                    twin.runner(slow, 0)(batch)
            assert all(torch.equal(a.x, b) for a, b in zip(inputs, expected, strict=True))
            for name in stage:
                block.linears[name].weight.mul_(0.9)
                slow.linears[name].weight.mul_(0.9)

        work = BlockPass(block, [stage.linears for stage in LLAMA], blocks.runner(block, 0), batches, [None] * 3)
        schedule(work, check)


@torch.no_grad()
def test_traced_stages_equal_those_of_the_family_table(embedded):
    blocks, batches = embedded
    with blocks.block(0) as block:
        run = blocks.runner(block, 0)
        assert trace_stages(block.linears, lambda: run(batches[0])) == [stage.linears for stage in LLAMA]


@torch.no_grad()
@SCHEDULES
def test_a_wrong_order_of_stages_is_refused(embedded, schedule):
    blocks, batches = embedded
    with blocks.block(0) as block, pytest.raises(ValueError, match="reached"):
        stages = [stage.linears for stage in reversed(LLAMA)]
        work = BlockPass(block, stages, blocks.runner(block, 0), batches, [None] * 3)
        schedule(work, lambda stage, inputs: list(inputs))


@torch.no_grad()
@pytest.mark.parametrize("method", ["gptq", "awq", "awq+gptq"])
def test_micro_batches_never_change_the_codes(embedded, method):
    blocks, batches = embedded
    results = []
    for parts in (batches, [torch.cat(batches)]):
        if parts is not batches:
            with blocks.embedding_and_norm():
                blocks.prepare([(6, 64)])
        with blocks.block(0) as block:
            settings = BlockSettings(method, **SETTINGS)
            result = quantize_block(block, blocks.runner(block, 0), parts, settings, [None] * len(parts))
            results.append(result.weights)
    for name, weight in results[0].items():
        assert (weight.codes != results[1][name].codes).float().mean() < 2e-2, name  # sums in another order flip ties


@torch.no_grad()
@pytest.mark.parametrize("method", ["gptq", "awq", "awq+gptq"])
def test_folded_weights_give_the_outputs_of_the_pass(embedded, method):
    """A block with the written tensors, norms and biases included, computes the inputs of the next block."""
    blocks, batches = embedded
    with blocks.block(0) as block:
        run = blocks.runner(block, 0)
        outputs = [None] * len(batches)
        result = quantize_block(block, run, batches, BlockSettings(method, **SETTINGS), outputs)
        for name, weight in result.weights.items():
            block.linears[name].weight.data = weight.dequantize()
        for path, tensor in result.changed.items():
            block.module.get_parameter(path).data = tensor
        assert (method == "gptq") == (not result.changed)
        for output, batch in zip(outputs, batches, strict=True):
            torch.testing.assert_close(run(batch), output, rtol=2e-3, atol=2e-3 * output.abs().max().item())


def test_a_hessian_is_the_mean_over_all_tokens():
    x = torch.randn(3, 7, 5)
    hessian = Hessian(5)
    for batch in x:
        hessian.update(batch)
    flat = x.reshape(-1, 5)
    torch.testing.assert_close(hessian.value, flat.T @ flat / 21)


def test_no_model_type_is_in_two_rows():
    types = [*ARCHITECTURES]
    assert len(types) == len(set(types))
