"""The compiled loops return the same numbers as the torch functions, except for ties."""

import subprocess
import sys

import numba
import pytest
import torch

from compress.core import grid, kernels
from compress.core.grid import SHRINKS, Scheme, full_range
from compress.quantize.methods import gptq, refine

SIZES = [1, 63, 64, 65, 200]  # outputs: around a tile


def group(outputs, zero, seed=0):
    """A random group: codes and gradient (32, outputs), a Hessian (32, 32), and scales and zeros (outputs,)."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(100, 32, generator=g)
    codes = torch.randint(0, 16, (32, outputs), generator=g, dtype=torch.uint8)
    scales = torch.rand(outputs, generator=g) * 0.2 + 0.05
    scales *= torch.where(torch.rand(outputs, generator=g) < 0.5, -1, 1)
    zeros = torch.full((outputs,), float(zero))
    return codes, 0.3 * torch.randn(32, outputs, generator=g), x.T @ x / 100, scales, zeros


@pytest.mark.parametrize("outputs", SIZES)
def test_the_kernel_rounds_a_block_like_torch(outputs):
    g = torch.Generator().manual_seed(0)
    columns, scales = torch.randn(32, outputs, generator=g), torch.rand(32, outputs, generator=g) * 0.1 + 0.05
    rows, zeros = 0.1 * torch.randn(32, 32, generator=g), torch.randint(0, 16, (32, outputs), generator=g).float()
    offsets, errors = kernels.round_block(columns, scales, zeros, rows, 15)
    expected, expected_errors = gptq.round_block(columns.clone(), scales, zeros, rows, 15)
    same = (offsets == expected).all(0)  # complete outputs: a tie changes all later columns
    assert same.float().mean() > 0.98
    torch.testing.assert_close(errors[:, same], expected_errors[:, same], atol=1e-5, rtol=0)


def test_a_block_that_is_not_contiguous_gives_the_same_codes():
    columns, scales = torch.randn(32, 70), torch.full((32, 70), 0.1)
    rows, zeros = 0.1 * torch.randn(32, 32), torch.full((32, 70), 8.0)
    together = kernels.round_block(columns, scales, zeros, rows, 15)
    apart = kernels.round_block(columns.T.contiguous().T, scales, zeros, rows, 15)
    assert all(torch.equal(actual, expected) for actual, expected in zip(apart, together, strict=True))


def moved_by(move, outputs, zero, dtype=torch.float16):
    """The codes, error and scales of a group after a call of `move`."""
    codes, gradient, hessian, scales, zeros = group(outputs, zero)
    error, scales = torch.zeros_like(gradient), scales.to(dtype).float()
    move(codes, error, scales, gradient, hessian, hessian.diagonal(), zeros, 15, dtype)
    return codes, error, scales


@pytest.mark.parametrize("outputs", SIZES)
@pytest.mark.parametrize("zero", [8, 0, 15])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_kernel_refines_a_group_like_torch(outputs, zero, dtype):
    ours, theirs = (moved_by(move, outputs, zero, dtype) for move in (kernels.move_group, refine.move_group))
    before = group(outputs, zero)
    assert (ours[0] != before[0]).any() and (ours[2] != before[3]).any()
    assert torch.equal(ours[2], ours[2].to(dtype).float()) and torch.equal(ours[2].sign(), before[3].sign())
    same = (ours[0] == theirs[0]).all(0)
    assert same.float().mean() > 0.98
    for actual, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(actual[..., same], expected[..., same], atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("move", [kernels.move_group, refine.move_group])
@pytest.mark.parametrize("best_scale", [1e-9, 1e9], ids=["too small", "too large"])
def test_a_refined_scale_always_fits_into_float16(move, best_scale):
    codes, scales, zeros = (
        torch.zeros(1, 4, dtype=torch.uint8),
        torch.full((4,), 2.0),
        -torch.ones(4),
    )  # one step each
    gradient, energy = torch.full((1, 4), 2 - best_scale), torch.ones(1)
    move(codes, torch.zeros(1, 4), scales, gradient, energy[None], energy, zeros, 0, torch.float16)
    assert torch.equal(scales, torch.full((4,), 2.0))


@pytest.mark.parametrize("outputs", SIZES)
def test_the_kernel_chooses_the_grids_of_torch(outputs):
    g = torch.Generator().manual_seed(0)
    grouped, importance = torch.randn(outputs, 3, 32, generator=g), torch.rand(3, 32, generator=g)
    low, high = torch.aminmax(grouped, dim=-1)
    grids = [full_range(low, high, Scheme(), shrink) for shrink in SHRINKS]
    scales, zeros = (torch.stack(parts) for parts in zip(*grids, strict=True))
    actual = kernels.best_grid(grouped, importance, scales, zeros, 15)
    assert (actual == grid.best_grid(grouped, importance, scales, zeros, 15)).float().mean() > 0.98
    assert len(actual.unique()) > 3 or outputs == 1


def test_the_first_of_equally_good_grids_is_chosen():
    grouped, scales = torch.ones(4, 2, 32), torch.full((5, 4, 2), 0.5)
    for find in (kernels.best_grid, grid.best_grid):
        assert not find(grouped, torch.ones(2, 32), scales, torch.full_like(scales, 8), 15).any()


def test_outputs_in_the_same_tile_are_independent():
    codes, gradient, hessian, scales, zeros = group(200, 8)
    full = codes.clone(), torch.zeros_like(gradient), scales.clone()
    kernels.move_group(*full, gradient, hessian, hessian.diagonal(), zeros, 15, torch.float16)
    part_slice = slice(37, 111)
    part = codes[:, part_slice].clone(), torch.zeros(32, 74), scales[part_slice].clone()
    kernels.move_group(
        *part, gradient[:, part_slice], hessian, hessian.diagonal(), zeros[part_slice], 15, torch.float16
    )
    assert all(torch.equal(a[..., part_slice], b) for a, b in zip(full, part, strict=True))


def test_loops_compile_without_a_writable_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(numba, "njit", without_cache(numba.njit))
    twice = kernels.compiled()(lambda x: 2 * x)
    assert twice(3) == 6


def without_cache(njit):
    """Behaves as numba.njit does without a writable cache folder."""

    def uncached(*, cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available for file")
        return njit(**options)

    return uncached


def test_importing_the_formats_does_not_import_numba():
    code = "import sys, compress.checkpoint.formats; assert 'numba' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
