from itertools import pairwise

import pytest
import torch

from compress.core.grid import QuantizedWeight, Scheme
from compress.quantize.methods.awq import output_error
from compress.quantize.methods.gptq import gptq
from compress.quantize.methods.refine import refine
from compress.quantize.methods.rtn import rtn

DTYPE = torch.float16


@pytest.fixture(params=[False, True], ids=["asym", "sym"])
def problem(request):
    """A weight (24, 96), the Hessian of correlated inputs, and the weight after GPTQ."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(400, 96, generator=g) @ (torch.eye(96) + 0.1 * torch.randn(96, 96, generator=g))
    weight, hessian = torch.randn(24, 96, generator=g), x.T @ x / len(x)
    return weight, hessian, gptq(weight, hessian, Scheme(group_size=32, sym=request.param))[0]


def output_loss(quantized, weight, hessian):
    return output_error((quantized.dequantize() - weight).double(), hessian.double())


def test_the_first_sweep_lowers_the_error_and_none_raises_it(problem):
    weight, hessian, quantized = problem
    errors = [output_loss(refine(weight, hessian, quantized, dtype=DTYPE, sweeps=n), weight, hessian) for n in range(6)]
    assert errors[0] == output_loss(quantized, weight, hessian) and errors[1] < 0.97 * errors[0]
    assert all(later <= earlier * (1 + 1e-6) for earlier, later in pairwise(errors))


def test_after_many_sweeps_no_single_code_can_improve(problem):
    weight, hessian, quantized = problem
    refined = refine(weight, hessian, quantized, dtype=DTYPE, sweeps=100)
    error = (refined.dequantize() - weight).double()
    gradient, energy = error @ hessian.double(), hessian.double().diagonal()
    for step in (-1, 1):
        change = step * refined.scales.double().repeat_interleave(32, 1)
        free = (refined.codes.int() + step).clamp(0, 15) == refined.codes.int() + step
        assert (change * (2 * gradient + change * energy))[free].min() > -1e-6


def test_after_many_sweeps_scales_are_the_least_squares_fit(problem):
    weight, hessian, quantized = problem
    refined = refine(weight, hessian, quantized, dtype=torch.float32, sweeps=100)
    offsets = refined.codes.double() - refined.zeros.double().repeat_interleave(32, 1)
    gradient = (refined.dequantize() - weight).double() @ hessian.double()
    slope, size = ((offsets * part).unflatten(1, (3, 32)).sum(-1) for part in (gradient, gradient.abs()))
    assert (slope.abs() < 1e-4 * size.abs().max()).all()


def test_scales_fit_the_stored_dtype_and_keep_their_signs(problem):
    weight, hessian, quantized = problem
    refined = refine(weight, hessian, quantized, dtype=DTYPE)
    assert torch.equal(refined.scales, refined.scales.half().float())
    assert torch.equal(refined.scales.sign(), quantized.scales.sign()) and torch.equal(refined.zeros, quantized.zeros)


def test_a_dead_input_keeps_its_codes(problem):
    weight, hessian, quantized = problem
    hessian[5], hessian[:, 5] = 0, 0
    refined = refine(weight, hessian, quantized, dtype=DTYPE)
    assert torch.equal(refined.codes[:, 5], quantized.codes[:, 5]) and refined.dequantize().isfinite().all()


def test_weights_on_the_grid_stay_unchanged(problem):
    _, hessian, quantized = problem
    refined = refine(quantized.dequantize(), hessian, quantized, dtype=DTYPE)
    assert torch.equal(refined.codes, quantized.codes) and torch.equal(refined.scales, quantized.scales)


def test_a_weight_of_zeros_stays_zero():
    plain = rtn(torch.zeros(4, 64), Scheme(group_size=32, sym=False))
    refined = refine(torch.zeros(4, 64), torch.eye(64), plain, dtype=DTYPE)
    assert isinstance(refined, QuantizedWeight) and not refined.dequantize().any()


@pytest.mark.parametrize("outputs", [1, 24])
def test_the_input_is_never_changed_in_place(problem, outputs):
    weight, hessian, quantized = problem
    original = quantized.rows(0, outputs)
    before = original.codes.clone(), original.scales.clone()
    refined = refine(weight[:outputs], hessian, original, dtype=DTYPE)
    assert torch.equal(original.codes, before[0]) and torch.equal(original.scales, before[1])
    assert not torch.equal(refined.codes, original.codes)
