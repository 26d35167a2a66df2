import pytest
import torch

from compress.core.grid import Scheme
from compress.quantize.methods import parallel_rows
from compress.quantize.methods.parallel_rows import solve_in_parallel
from compress.quantize.methods.rtn import rtn
from compress.quantize.methods.table import METHODS, Problem

SCHEME = Scheme(group_size=32)


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    """The number of torch threads during a test."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("outputs", [1, 2, 7, 64])
def test_every_row_is_solved_once_and_in_order(outputs, threads, monkeypatch):
    monkeypatch.setattr(parallel_rows, "MAX_NUMBERS", 5 * 64)
    weight = torch.randn(outputs, 64)
    joined = solve_in_parallel(lambda rows: rtn(weight[rows], SCHEME), weight)
    assert torch.equal(joined.dequantize(), rtn(weight, SCHEME).dequantize())


def test_slices_use_one_thread_and_the_number_is_restored(threads):
    numbers = []

    def solve(rows):
        numbers.append(torch.get_num_threads())
        return rtn(torch.ones(1, 32), SCHEME)

    solve_in_parallel(solve, torch.ones(9, 32))
    assert set(numbers) == {1} and torch.get_num_threads() == threads


def test_an_error_in_a_slice_is_raised_and_the_threads_restored(threads):
    def broken(rows):
        raise ValueError("no grid")

    with pytest.raises(ValueError, match="no grid"):
        solve_in_parallel(broken, torch.ones(9, 32))
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("method", ["gptq", "awq", "awq+gptq"])
def test_slices_never_change_the_result_of_a_method(method, threads, monkeypatch):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(400, 64, generator=g)
    problem = Problem(torch.randn(70, 64, generator=g), x.T @ x / 400, SCHEME, 0.01, scalable=True)
    whole = METHODS[method](problem)
    monkeypatch.setattr(parallel_rows, "MAX_NUMBERS", 9 * 64)
    sliced = METHODS[method](problem)
    same = (whole.weight.codes == sliced.weight.codes).float().mean()  # matrix products of other widths may flip ties
    assert same > 0.99 and (whole.scale is None or torch.equal(whole.scale, sliced.scale))
