import pytest
import torch

from calibration.statistics import Hessian
from compress.checkpoint.formats import weight_reader
from compress.checkpoint.read import Checkpoint
from compress.core.grid import Scheme
from compress.model.blocks import BlockModel
from compress.quantize.blocks.block import Reference, quantize_block
from compress.quantize.blocks.lockstep import StageInput, lockstep, replay
from compress.quantize.blocks.problem import BlockSettings
from compress.quantize.methods.error_correction import ErrorCovariance, correct_weight, times_inverse
from compress.quantize.methods.gptq import inverse_factor

SETTINGS = {"scheme": Scheme(group_size=32), "damp_percent": 0.01}
HEADS = {"query_heads_per_kv_head": 2, "head_dim": 16}


@pytest.fixture(params=[6, 2])
def problem(request):
    """A weight of many outputs (6, 8) or few, 500 inputs of the 16-bit model, and what quantized predecessors made."""
    torch.manual_seed(0)
    wanted = torch.randn(500, 8)
    return torch.randn(request.param, 8), wanted, wanted + 0.3 * torch.randn(500, 8) @ torch.randn(8, 8)


def corrected(weight, wanted, x, strength, damp_percent=1e-7):
    hessian, covariance = Hessian(8), ErrorCovariance(weight)
    for part, part16 in zip(x.split(99), wanted.split(99), strict=True):
        hessian.update(part)
        covariance.update(StageInput(part), part16)
    factor = inverse_factor(hessian.value, damp_percent)
    return correct_weight(weight.clone(), factor, covariance.take(), strength, from_inputs=covariance.from_inputs)


@pytest.mark.parametrize("biased", [False, True])
def test_a_stage_that_adds_to_the_residual_stream_makes_up_for_what_that_lacks(problem, biased):
    weight, wanted, x = problem
    bias = torch.arange(float(len(weight))) if biased else None
    residual = torch.randn(500, len(weight)) + x[:, : len(weight)]
    state = residual + 0.2 * x[:, -len(weight) :] + wanted @ weight.T  # what is in the 16-bit model, but for the bias
    hessian, covariance = Hessian(8), ErrorCovariance(weight, bias, residual_outputs=True)
    for rows in torch.arange(500).split(99):
        hessian.update(x[rows])
        aim = state[rows] if bias is None else state[rows] + bias
        covariance.update(StageInput(x[rows], residual[rows]), aim)
    found = correct_weight(weight.clone(), inverse_factor(hessian.value, 1e-7), covariance.take(), 1.0)
    solution = torch.linalg.lstsq(x.double(), (state - residual).double()).solution.T
    torch.testing.assert_close(found.double(), solution, rtol=1e-4, atol=1e-4)


def test_the_whole_way_is_the_least_squares_solution(problem):
    weight, wanted, x = problem
    solution = torch.linalg.lstsq(x.double(), (wanted @ weight.T).double()).solution.T
    torch.testing.assert_close(corrected(weight, wanted, x, 1.0).double(), solution, rtol=1e-4, atol=1e-4)


def test_half_the_way_is_the_middle(problem):
    weight, wanted, x = problem
    middle = (weight + corrected(weight, wanted, x, 1.0)) / 2
    torch.testing.assert_close(corrected(weight, wanted, x, 0.5), middle)


def test_inputs_without_a_mismatch_leave_the_weight_as_it_is(problem):
    weight, wanted, _ = problem
    assert torch.equal(corrected(weight, wanted, wanted, 0.5), weight)


def test_an_input_that_never_fires_keeps_its_weights(problem):
    weight, wanted, x = problem
    x[:, 3] = 0
    found = corrected(weight, wanted, x, 1.0)
    assert torch.equal(found[:, 3], weight[:, 3]) and not torch.equal(found, weight)


def test_strips_leave_out_nothing_but_zeros():
    torch.manual_seed(0)
    rows, upper = torch.randn(3, 11), torch.randn(11, 11).triu()
    torch.testing.assert_close(times_inverse(rows, upper), rows @ upper.T @ upper)


@pytest.fixture
def two_blocks(tiny_qwen2):
    checkpoint = Checkpoint(tiny_qwen2)
    blocks = BlockModel(checkpoint.config, weight_reader(checkpoint))
    ids = torch.randint(0, 128, (16, 64), generator=torch.Generator().manual_seed(0))
    with blocks.embedding_and_norm():
        return blocks, [blocks.embed(part) for part in ids.split(2)]


def through(blocks, batches, schedule, strength, matmul_dtype=torch.float32):
    """States after the last block: of the quantized model, and of the reference."""
    settings = BlockSettings("gptq", **SETTINGS, error_correction=strength, **HEADS, matmul_dtype=matmul_dtype)
    own, true = list(batches), list(batches)
    for index, block in blocks.in_order():
        reference = Reference(list(true), true, lambda number: [])
        run = blocks.runner(block, index)
        quantize_block(block, run, list(own), settings, own, schedule, reference=reference)
    return torch.cat(own), torch.cat(true)


@torch.no_grad()
@pytest.mark.parametrize("schedule", [lockstep, replay])
def test_the_reference_is_the_16_bit_model(two_blocks, schedule):
    blocks, batches = two_blocks
    _, true = through(blocks, batches, schedule, 0.5)
    plain = list(batches)
    for index, block in blocks.in_order():
        plain = [blocks.runner(block, index)(batch) for batch in plain]
    assert torch.equal(true, torch.cat(plain))


@torch.no_grad()
@pytest.mark.parametrize("schedule", [lockstep, replay])
def test_products_in_bfloat16_move_the_states_less_than_quantizing_does(two_blocks, schedule):
    blocks, batches = two_blocks
    own, true = through(blocks, batches, schedule, 0.5)
    rounded_own, rounded_true = through(blocks, batches, schedule, 0.5, torch.bfloat16)
    lost = (own - true).norm()
    assert 0 < (rounded_true - true).norm() < 0.1 * lost
    assert 0.9 * lost < (rounded_own - rounded_true).norm() < 1.1 * lost


@torch.no_grad()
def test_correcting_the_mismatch_brings_the_calibration_text_closer(two_blocks):
    blocks, batches = two_blocks
    errors = []
    for strength in (0.0, 1.0):
        own, true = through(blocks, batches, lockstep, strength)
        errors.append((own - true).square().mean().item())
    assert errors[1] < 0.9 * errors[0]
