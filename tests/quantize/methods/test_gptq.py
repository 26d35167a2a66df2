import pytest
import torch

from compress.core.grid import Scheme, dequantize, find_grid, quantize
from compress.quantize.methods.awq import output_error
from compress.quantize.methods.gptq import damping, factor_in_place, gptq, inverse_factor
from compress.quantize.methods.rtn import round_to_grid, rtn


@pytest.fixture(scope="module")
def problem():
    """A weight (48, 256), and the Hessian (256, 256) of correlated inputs."""
    g = torch.Generator().manual_seed(0)
    mix = torch.eye(256) + 0.9 * torch.randn(256, 256, generator=g) / 16
    x = torch.randn(2048, 256, generator=g) @ mix * torch.rand(256, generator=g).add(0.1)
    return torch.randn(48, 256, generator=g), x.T @ x / len(x)


def paper_loop(weight, hessian, *, group_size, sym, damp_percent=0.01):
    """Algorithm 1 as in the paper: one column at a time by falling energy, without blocks of columns."""
    scales, zeros = find_grid(weight, Scheme(group_size=group_size, sym=sym), hessian.diagonal())
    order = torch.argsort(hessian.diagonal(), descending=True, stable=True)
    damped = hessian[order][:, order] + damp_percent * hessian.diagonal().mean() * torch.eye(len(hessian))
    upper = torch.linalg.cholesky(torch.linalg.inv(damped.double()), upper=True).float()
    columns, codes = weight[:, order].clone(), torch.empty_like(weight)
    for i, column in enumerate(order.tolist()):
        scale, zero = scales[:, column // group_size], zeros[:, column // group_size]
        code = quantize(columns[:, i], scale, zero, 4)
        error = (columns[:, i] - dequantize(code, scale, zero)) / upper[i, i]
        columns -= error[:, None] * upper[i][None]
        codes[:, column] = code
    return codes


@pytest.mark.parametrize("sym", [False, True], ids=["asym", "sym"])
@pytest.mark.parametrize("group_size", [32, 128])
def test_blocked_gptq_is_the_plain_loop_of_the_paper(problem, group_size, sym):
    weight, hessian = problem
    expected = paper_loop(weight, hessian, group_size=group_size, sym=sym)
    quantized, _ = gptq(weight, hessian, Scheme(group_size=group_size, sym=sym))
    assert (quantized.codes != expected).float().mean() < 2e-3  # float rounding may flip a tie


@pytest.mark.parametrize("block_size", [1, 16, 100, 256])
def test_block_size_never_changes_the_result(problem, block_size):
    weight, hessian = problem
    expected, _ = gptq(weight, hessian, Scheme(group_size=64), block_size=32)
    quantized, _ = gptq(weight, hessian, Scheme(group_size=64), block_size=block_size)
    assert (quantized.codes != expected.codes).float().mean() < 2e-3
    assert torch.equal(quantized.scales, expected.scales)


def test_a_precomputed_factor_never_changes_the_result(problem):
    weight, hessian = problem
    reused, damp = gptq(weight, hessian, Scheme(group_size=64), damp_percent=0.02, factor=inverse_factor(hessian, 0.02))
    computed, _ = gptq(weight, hessian, Scheme(group_size=64), damp_percent=0.02)
    assert damp == 0.02 and torch.equal(reused.codes, computed.codes) and torch.equal(reused.scales, computed.scales)


def test_white_inputs_make_gptq_plain_rounding(problem):
    weight, _ = problem
    quantized, _ = gptq(weight, torch.eye(256), Scheme(group_size=64))
    scales, zeros = find_grid(weight, Scheme(group_size=64, sym=False), torch.ones(256))
    assert torch.equal(quantized.codes, round_to_grid(weight, scales, zeros, Scheme(group_size=64, sym=False)).codes)


@pytest.mark.parametrize("sym", [False, True], ids=["asym", "sym"])
def test_gptq_beats_rounding_on_correlated_inputs(problem, sym):
    weight, hessian = problem
    ours = gptq(weight, hessian, Scheme(group_size=64, sym=sym))[0].dequantize()
    plain = rtn(weight, Scheme(group_size=64, sym=sym)).dequantize()
    assert output_error(ours - weight, hessian) < 0.7 * output_error(plain - weight, hessian)


def test_the_factor_multiplies_to_the_inverse(problem):
    _, hessian = problem
    factor = inverse_factor(hessian, 1e-6)
    ordered = hessian[factor.order][:, factor.order]
    torch.testing.assert_close(factor.upper.T @ factor.upper @ ordered, torch.eye(256), atol=2e-2, rtol=0)
    assert (factor.upper.tril(-1) == 0).all()


@pytest.mark.parametrize("size", [1, 2, 5, 129, 300])
def test_factors_of_every_size_match_float64(size):
    x = torch.randn(2 * size + 8, size, generator=torch.Generator().manual_seed(size), dtype=torch.float64)
    hessian = x.T @ x / len(x)
    expected = torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)
    torch.testing.assert_close(factor_in_place(hessian.float()), expected.float(), atol=1e-4, rtol=1e-3)


def test_weights_of_a_dead_input_are_rounded_to_nearest(problem):
    weight, hessian = problem
    hessian = hessian.clone()
    hessian[5], hessian[:, 5] = 0, 0
    quantized, _ = gptq(weight, hessian, Scheme(group_size=64))
    scale, zero = quantized.scales[:, 0], quantized.zeros[:, 0]
    assert torch.equal(quantized.codes[:, 5].float(), quantize(weight[:, 5], scale, zero, 4))


def test_a_rank_one_hessian_gets_more_damping():
    x = torch.randn(1, 64, generator=torch.Generator().manual_seed(0)).double()
    hessian = (x.T @ x).float() - 0.05 * torch.eye(64)  # not positive with the first damping
    _, damp = gptq(torch.randn(8, 64), hessian, Scheme(group_size=32), damp_percent=0.001)
    assert damp > 0.001


def test_a_hessian_with_nan_is_refused():
    with pytest.raises(ValueError, match="NaN"):
        gptq(torch.randn(8, 64), torch.full((64, 64), float("nan")), Scheme(group_size=32))


@pytest.mark.parametrize(("least", "tried"), [(0.03, [0.03, 0.3, 1.0]), (0.5, [0.5, 1.0]), (0.1, [0.1, 1.0])])
def test_damping_grows_tenfold_up_to_its_maximum(least, tried):
    assert list(damping(least)) == pytest.approx(tried)
