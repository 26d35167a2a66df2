import pytest
import torch

from calibration.statistics import Hessian
from compress.checkpoint.formats import weight_reader
from compress.checkpoint.read import Checkpoint
from compress.core.grid import Scheme
from compress.model.blocks import BlockModel
from compress.quantize.blocks.block import Reference, quantize_block
from compress.quantize.blocks.lockstep import lockstep, replay
from compress.quantize.blocks.problem import BlockSettings
from compress.quantize.methods.error_correction import ErrorCovariance, StageInput, correct_weight, times_inverse
from compress.quantize.methods.gptq import inverse_factor

SETTINGS = {"scheme": Scheme(group_size=32), "damp_percent": 0.01}
HEADS = {"query_heads_per_kv_head": 2, "head_dim": 16}


@pytest.fixture(params=[6, 2])
def problem(request):
    """A weight with many outputs (6, 8) or few, 500 inputs in the 16-bit model, and inputs after quantized layers."""
    torch.manual_seed(0)
    reference_inputs = torch.randn(500, 8)
    return (
        torch.randn(request.param, 8),
        reference_inputs,
        reference_inputs + 0.3 * torch.randn(500, 8) @ torch.randn(8, 8),
    )


def corrected(weight, reference_inputs, x, strength, damp_percent=1e-7):
    hessian, covariance = Hessian(8), ErrorCovariance(weight)
    for part, reference_part in zip(x.split(99), reference_inputs.split(99), strict=True):
        hessian.update(part)
        covariance.update(StageInput(part), reference_part)
    factor = inverse_factor(hessian.value, damp_percent)
    return correct_weight(weight.clone(), factor, covariance.take(), strength, from_inputs=covariance.from_inputs)


@pytest.mark.parametrize("biased", [False, True])
def test_residual_outputs_also_correct_the_residual_stream(problem, biased):
    weight, reference_inputs, x = problem
    bias = torch.arange(float(len(weight))) if biased else None
    residual = torch.randn(500, len(weight)) + x[:, : len(weight)]
    state = residual + 0.2 * x[:, -len(weight) :] + reference_inputs @ weight.T  # in the 16-bit model, without the bias
    hessian, covariance = Hessian(8), ErrorCovariance(weight, bias, residual_outputs=True)
    for rows in torch.arange(500).split(99):
        hessian.update(x[rows])
        reference = state[rows] if bias is None else state[rows] + bias
        covariance.update(StageInput(x[rows], residual[rows]), reference)
    corrected_weight = correct_weight(weight.clone(), inverse_factor(hessian.value, 1e-7), covariance.take(), 1.0)
    solution = torch.linalg.lstsq(x.double(), (state - residual).double()).solution.T
    torch.testing.assert_close(corrected_weight.double(), solution, rtol=1e-4, atol=1e-4)


def test_full_strength_is_the_least_squares_solution(problem):
    weight, reference_inputs, x = problem
    solution = torch.linalg.lstsq(x.double(), (reference_inputs @ weight.T).double()).solution.T
    torch.testing.assert_close(corrected(weight, reference_inputs, x, 1.0).double(), solution, rtol=1e-4, atol=1e-4)


def test_half_the_strength_moves_weights_half_as_far(problem):
    weight, reference_inputs, x = problem
    middle = (weight + corrected(weight, reference_inputs, x, 1.0)) / 2
    torch.testing.assert_close(corrected(weight, reference_inputs, x, 0.5), middle)


def test_equal_inputs_leave_the_weight_unchanged(problem):
    weight, reference_inputs, _ = problem
    assert torch.equal(corrected(weight, reference_inputs, reference_inputs, 0.5), weight)


def test_a_dead_input_keeps_its_weights(problem):
    weight, reference_inputs, x = problem
    x[:, 3] = 0
    corrected_weight = corrected(weight, reference_inputs, x, 1.0)
    assert torch.equal(corrected_weight[:, 3], weight[:, 3]) and not torch.equal(corrected_weight, weight)


def test_the_product_in_strips_equals_the_plain_product():
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
    """The states after the last block, in the quantized model and in the reference."""
    settings = BlockSettings("gptq", **SETTINGS, error_correction=strength, **HEADS, matmul_dtype=matmul_dtype)
    states, reference_states = list(batches), list(batches)
    for index, block in blocks.in_order():
        reference = Reference(list(reference_states), reference_states, lambda number: [])
        run = blocks.runner(block, index)
        quantize_block(block, run, list(states), settings, states, schedule, reference=reference)
    return torch.cat(states), torch.cat(reference_states)


@torch.no_grad()
@pytest.mark.parametrize("schedule", [lockstep, replay])
def test_reference_states_are_those_of_the_16_bit_model(two_blocks, schedule):
    blocks, batches = two_blocks
    _, reference_states = through(blocks, batches, schedule, 0.5)
    plain = list(batches)
    for index, block in blocks.in_order():
        plain = [blocks.runner(block, index)(batch) for batch in plain]
    assert torch.equal(reference_states, torch.cat(plain))


@torch.no_grad()
@pytest.mark.parametrize("schedule", [lockstep, replay])
def test_a_bfloat16_matmul_changes_states_less_than_quantizing(two_blocks, schedule):
    blocks, batches = two_blocks
    states, reference_states = through(blocks, batches, schedule, 0.5)
    rounded_states, rounded_reference = through(blocks, batches, schedule, 0.5, torch.bfloat16)
    lost = (states - reference_states).norm()
    assert 0 < (rounded_reference - reference_states).norm() < 0.1 * lost
    assert 0.9 * lost < (rounded_states - rounded_reference).norm() < 1.1 * lost


@torch.no_grad()
def test_error_correction_lowers_the_error_on_the_calibration_text(two_blocks):
    blocks, batches = two_blocks
    errors = []
    for strength in (0.0, 1.0):
        states, reference_states = through(blocks, batches, lockstep, strength)
        errors.append((states - reference_states).square().mean().item())
    assert errors[1] < 0.9 * errors[0]
