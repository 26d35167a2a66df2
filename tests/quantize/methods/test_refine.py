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


def lost(quantized, weight, hessian):
    return output_error((quantized.dequantize() - weight).double(), hessian.double())


def test_no_sweep_raises_the_output_error_and_the_first_lowers_it(problem):
    weight, hessian, quantized = problem
    errors = [lost(refine(weight, hessian, quantized, dtype=DTYPE, sweeps=n), weight, hessian) for n in range(6)]
    assert errors[0] == lost(quantized, weight, hessian) and errors[1] < 0.97 * errors[0]
    assert all(later <= earlier * (1 + 1e-6) for earlier, later in pairwise(errors))


def test_at_the_end_no_single_code_can_be_moved_for_the_better(problem):
    weight, hessian, quantized = problem
    found = refine(weight, hessian, quantized, dtype=DTYPE, sweeps=100)
    error = (found.dequantize() - weight).double()
    gradient, energy = error @ hessian.double(), hessian.double().diagonal()
    for step in (-1, 1):
        change = step * found.scales.double().repeat_interleave(32, 1)
        free = (found.codes.int() + step).clamp(0, 15) == found.codes.int() + step
        assert (change * (2 * gradient + change * energy))[free].min() > -1e-6


def test_at_the_end_the_scales_are_those_of_least_squares_but_for_their_rounding(problem):
    weight, hessian, quantized = problem
    found = refine(weight, hessian, quantized, dtype=torch.float32, sweeps=100)
    offsets = found.codes.double() - found.zeros.double().repeat_interleave(32, 1)
    gradient = (found.dequantize() - weight).double() @ hessian.double()
    slope, size = ((offsets * part).unflatten(1, (3, 32)).sum(-1) for part in (gradient, gradient.abs()))
    assert (slope.abs() < 1e-4 * size.abs().max()).all()


def test_scales_are_as_the_disk_holds_them_and_keep_their_signs(problem):
    weight, hessian, quantized = problem
    found = refine(weight, hessian, quantized, dtype=DTYPE)
    assert torch.equal(found.scales, found.scales.half().float())
    assert torch.equal(found.scales.sign(), quantized.scales.sign()) and torch.equal(found.zeros, quantized.zeros)


def test_an_input_that_never_fires_keeps_its_codes(problem):
    weight, hessian, quantized = problem
    hessian[5], hessian[:, 5] = 0, 0
    found = refine(weight, hessian, quantized, dtype=DTYPE)
    assert torch.equal(found.codes[:, 5], quantized.codes[:, 5]) and found.dequantize().isfinite().all()


def test_what_the_grid_holds_exactly_stays(problem):
    _, hessian, quantized = problem
    found = refine(quantized.dequantize(), hessian, quantized, dtype=DTYPE)
    assert torch.equal(found.codes, quantized.codes) and torch.equal(found.scales, quantized.scales)


def test_a_weight_of_zeros_stays_zero():
    plain = rtn(torch.zeros(4, 64), Scheme(group_size=32, sym=False))
    found = refine(torch.zeros(4, 64), torch.eye(64), plain, dtype=DTYPE)
    assert isinstance(found, QuantizedWeight) and not found.dequantize().any()


@pytest.mark.parametrize("outputs", [1, 24])
def test_what_is_given_stays_as_it_was(problem, outputs):
    weight, hessian, quantized = problem
    given = quantized.rows(0, outputs)
    before = given.codes.clone(), given.scales.clone()
    found = refine(weight[:outputs], hessian, given, dtype=DTYPE)
    assert torch.equal(given.codes, before[0]) and torch.equal(given.scales, before[1])
    assert not torch.equal(found.codes, given.codes)
