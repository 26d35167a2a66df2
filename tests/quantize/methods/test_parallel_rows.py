import pytest
import torch

from compress.core.grid import Scheme
from compress.quantize.methods import parallel_rows as shares
from compress.quantize.methods.parallel_rows import each_share
from compress.quantize.methods.rtn import rtn
from compress.quantize.methods.table import METHODS, Problem


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    """So many threads, and as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("outputs", [1, 2, 7, 64])
def test_every_output_is_solved_once_and_in_its_place(outputs, threads, monkeypatch):
    monkeypatch.setattr(shares, "LARGEST", 5 * 64)
    weight = torch.randn(outputs, 64)
    found = each_share(lambda own: rtn(weight[own], Scheme(group_size=32, sym=False)), weight)
    assert torch.equal(found.dequantize(), rtn(weight, Scheme(group_size=32, sym=False)).dequantize())


def test_a_core_multiplies_alone_and_all_multiply_together_afterwards(threads):
    seen = []

    def solve(own):
        seen.append(torch.get_num_threads())
        return rtn(torch.ones(1, 32), Scheme(group_size=32, sym=False))

    each_share(solve, torch.ones(9, 32))
    assert set(seen) == {1} and torch.get_num_threads() == threads


def test_what_a_share_raises_comes_out_and_the_threads_come_back(threads):
    def broken(own):
        raise ValueError("no grid")

    with pytest.raises(ValueError, match="no grid"):
        each_share(broken, torch.ones(9, 32))
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("method", ["gptq", "awq", "awq+gptq"])
def test_shares_never_change_what_a_method_finds(method, threads, monkeypatch):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(400, 64, generator=g)
    problem = Problem(torch.randn(70, 64, generator=g), x.T @ x / 400, Scheme(4, 32), 0.01, scalable=True)
    whole = METHODS[method](problem)
    monkeypatch.setattr(shares, "LARGEST", 9 * 64)
    parts = METHODS[method](problem)
    same = (whole.weight.codes == parts.weight.codes).float().mean()  # but for ties that products of another width turn
    assert same > 0.99 and (whole.scale is None or torch.equal(whole.scale, parts.scale))
