"""The compiled loops against the torch loops beside which they stand: the same numbers, but for ties."""

import pytest
import torch

from compress.quantize import gptq, grid, kernels, refine
from compress.quantize.grid import SHRINKS, full_range

SIZES = [1, 63, 64, 65, 200]  # outputs: around a tile, and what no thread's share divides


@pytest.fixture
def threads():
    """Two threads, whatever the machine has, and as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def group(outputs, zero, seed=0):
    """Codes, a gradient (32, outputs), a Hessian (32, 32), scales and zeros (outputs,)."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(100, 32, generator=g)
    codes = torch.randint(0, 16, (32, outputs), generator=g, dtype=torch.uint8)
    scales = torch.rand(outputs, generator=g) * 0.2 + 0.05
    scales *= torch.where(torch.rand(outputs, generator=g) < 0.5, -1, 1)
    zeros = torch.full((outputs,), float(zero))
    return codes, 0.3 * torch.randn(32, outputs, generator=g), x.T @ x / 100, scales, zeros


@pytest.mark.parametrize("outputs", SIZES)
def test_a_block_is_rounded_as_in_torch(outputs, threads):
    g = torch.Generator().manual_seed(0)
    columns, scales = torch.randn(32, outputs, generator=g), torch.rand(32, outputs, generator=g) * 0.1 + 0.05
    rows, zeros = 0.1 * torch.randn(32, 32, generator=g), torch.randint(0, 16, (32, outputs), generator=g).float()
    offsets, errors = kernels.round_block(columns, scales, zeros, rows, 15)
    expected, expected_errors = gptq.round_block(columns.clone(), scales, zeros, rows, 15)
    same = (offsets == expected).all(0)  # of an output all columns, since a tie changes those after it
    assert same.float().mean() > 0.98
    torch.testing.assert_close(errors[:, same], expected_errors[:, same], atol=1e-5, rtol=0)


@pytest.mark.parametrize("outputs", SIZES)
@pytest.mark.parametrize("zero", [8, 0, 15])
def test_codes_move_as_in_torch(outputs, zero, threads):
    codes, gradient, hessian, scales, zeros = group(outputs, zero)
    given = (codes, gradient, hessian, hessian.diagonal(), scales, zeros, 15)
    ours, theirs = kernels.move_codes(*given), refine.move_codes(*given)
    same = (ours[0] == theirs[0]).all(0)
    assert same.float().mean() > 0.98 and (ours[0] != codes - zeros).any()
    for found, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found[..., same], expected[..., same], atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("outputs", SIZES)
def test_what_has_moved_is_settled_as_in_torch(outputs, threads):
    codes, error, _, old, zeros = group(outputs, 8)
    moved, new = group(outputs, 8, seed=1)[0] - zeros, old * 1.1
    ours, theirs = (error.clone(), codes.clone()), (error.clone(), codes.clone())
    kernels.settle(*ours, moved, old, new, zeros)
    refine.settle(*theirs, moved, old, new, zeros)
    torch.testing.assert_close(ours[0], theirs[0], atol=1e-6, rtol=1e-6)
    assert torch.equal(ours[1], theirs[1]) and torch.equal(ours[1], (moved + 8).to(torch.uint8))


@pytest.mark.parametrize("outputs", SIZES)
def test_the_same_grids_are_chosen_as_in_torch(outputs, threads):
    g = torch.Generator().manual_seed(0)
    grouped, importance = torch.randn(outputs, 3, 32, generator=g), torch.rand(3, 32, generator=g)
    low, high = torch.aminmax(grouped, dim=-1)
    grids = [full_range(low, high, bits=4, shrink=shrink, dtype=torch.float16) for shrink in SHRINKS]
    scales, zeros = (torch.stack(parts) for parts in zip(*grids, strict=True))
    found = kernels.best_grid(grouped, importance, scales, zeros, 15)
    assert (found == grid.best_grid(grouped, importance, scales, zeros, 15)).float().mean() > 0.98
    assert len(found.unique()) > 3 or outputs == 1


def test_of_grids_that_lose_the_same_the_first_is_chosen():
    grouped, scales = torch.ones(4, 2, 32), torch.full((5, 4, 2), 0.5)
    for find in (kernels.best_grid, grid.best_grid):
        assert not find(grouped, torch.ones(2, 32), scales, torch.full_like(scales, 8), 15).any()


def test_threads_and_tiles_never_change_the_result():
    codes, gradient, hessian, scales, zeros = group(333, 8)
    given = (codes, gradient, hessian, hessian.diagonal(), scales, zeros, 15)
    before, found = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(kernels.move_codes(*given))
    torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_loops_are_compiled_where_no_place_can_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(kernels.numba, "njit", refuse_to_cache(kernels.numba.njit))
    twice = kernels.compiled()(lambda x: 2 * x)
    assert twice(3) == 6


def refuse_to_cache(njit):
    """numba.njit, as it is where it finds no place for its cache."""

    def refusing(*, cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available for file")
        return njit(**options)

    return refusing
