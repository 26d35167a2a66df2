import pytest
import torch
from torch import nn

from compress.core.grid import Scheme
from compress.model.families import Feeder
from compress.quantize.methods.awq import coarse_to_fine, normalised, output_error
from compress.quantize.methods.fold import fold_norm, fold_rows, per_row
from compress.quantize.methods.rtn import rtn
from compress.quantize.methods.table import METHODS, Problem


def make_problem(scalable=True, heads=1, head_dim=0, sym=False):
    """A problem whose inputs have a few large channels, as in language models."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(1024, 128, generator=g) * (torch.rand(128, generator=g) ** 6 * 30 + 0.1)
    weight = torch.randn(64, 128, generator=g) * 0.1
    return Problem(weight, x.T @ x / len(x), Scheme(4, 64, sym), 0.01, scalable, heads, head_dim)


def loss(problem, method):
    return output_error(METHODS[method](problem).effective() - problem.weight, problem.hessian)


@pytest.mark.parametrize("sym", [False, True], ids=["asym", "sym"])
def test_awq_beats_rounding_with_large_channels(sym):
    problem = make_problem(sym=sym)
    assert loss(problem, "awq") < 0.7 * loss(problem, "rtn")


def test_awq_with_gptq_beats_awq_and_gptq_alone():
    problem = make_problem()
    assert loss(problem, "awq+gptq") < min(loss(problem, "awq"), loss(problem, "gptq"))


def test_an_unscalable_problem_gets_no_scale():
    assert METHODS["awq"](make_problem(scalable=False)).scale is None


def test_query_heads_of_one_value_head_get_the_same_scales():
    problem = make_problem(heads=2, head_dim=16)
    scale = METHODS["awq"](problem).scale.view(-1, 2, 16)
    assert torch.equal(scale[:, 0], scale[:, 1]) and not torch.equal(scale[0, 0], scale[1, 0])


@pytest.mark.parametrize("lowest", range(20))
def test_a_single_minimum_is_reached_in_at_most_nine_tries(lowest):
    tried = []
    best = coarse_to_fine(lambda index: tried.append(index) or abs(index - lowest), 20)
    assert best == lowest and len(tried) == len(set(tried)) <= 9


def test_the_first_of_equal_candidates_wins():
    assert coarse_to_fine(lambda index: 1.0, 20) == 0


def test_infinite_errors_leave_the_channels_unscaled():
    assert coarse_to_fine(lambda index: float("inf") if index else 1.0, 20) == 0


@pytest.mark.parametrize("width", [1, 3, 8, 130])
def test_output_error_is_the_mean_squared_output_difference(width):
    g = torch.Generator().manual_seed(width)
    x, difference = torch.randn(200, width, generator=g), torch.randn(7, width, generator=g)
    expected = (x @ difference.T).square().sum(1).mean().item()
    assert output_error(difference, x.T @ x / len(x)) == pytest.approx(expected, rel=1e-5)


def test_the_largest_and_the_smallest_scale_multiply_to_one():
    scale = normalised(torch.tensor([0.5, 1.0, 8.0]))
    torch.testing.assert_close(scale.max() * scale.min(), torch.tensor(1.0))


def test_folding_into_a_norm_keeps_the_function():
    norm, linear, scale = torch.randn(32), nn.Linear(32, 8, bias=False), torch.rand(32) + 0.5
    x = torch.randn(4, 32)
    for offset in (0.0, 1.0):
        folded = fold_norm(norm, scale, offset)
        torch.testing.assert_close((x * (folded + offset)) @ (linear.weight * scale).T, linear(x * (norm + offset)))


def test_folding_into_quantized_rows_keeps_the_codes():
    weight, divisor = rtn(torch.randn(16, 64), Scheme(group_size=32, sym=False)), torch.rand(8) + 0.5
    folded = fold_rows(weight, divisor, torch.float32)
    assert torch.equal(folded.codes, weight.codes) and torch.equal(folded.zeros, weight.zeros)
    torch.testing.assert_close(folded.dequantize()[8:], weight.dequantize()[8:] / divisor[:, None])
    assert torch.equal(folded.dequantize()[:8], weight.dequantize()[:8])


def test_a_value_projection_gets_one_scale_per_row():
    scale = (
        torch.arange(2 * 16).float().view(2, 1, 16).expand(2, 3, 16).reshape(-1)
    )  # 2 value heads, 3 query heads each
    assert torch.equal(per_row(scale, Feeder("self_attn.v_proj", "heads"), 3, 16), torch.arange(32).float())
