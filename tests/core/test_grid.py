import pytest
import torch

from compress.core import grid
from compress.core.dtypes import Dtype
from compress.core.grid import SMALLEST_SCALE, Scheme, find_grid, min_max, signed_range, split_groups
from compress.quantize.methods.rtn import round_to_grid, rtn


@pytest.fixture
def weight():
    return torch.randn(16, 128, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("sym", [False, True], ids=["asym", "sym"])
@pytest.mark.parametrize("group_size", [32, 128])
def test_rounding_error_is_at_most_half_a_step(weight, group_size, sym):
    quantized = rtn(weight, Scheme(group_size=group_size, sym=sym))
    steps = quantized.scales.repeat_interleave(group_size, 1)
    limit = steps * (1.0 if sym else 0.51)  # sym loses its top code; asym zeros are rounded with float16 scales
    assert ((weight - quantized.dequantize()).abs() <= limit).all()


def test_symmetric_zeros_are_the_middle_code(weight):
    assert (rtn(weight, Scheme(group_size=32, sym=True)).zeros == 8).all()


def test_scales_fit_into_float16(weight):
    scales = rtn(weight, Scheme(group_size=32, sym=False)).scales
    assert torch.equal(scales, scales.half().float())


@pytest.mark.parametrize("sym", [False, True], ids=["asym", "sym"])
def test_a_group_of_zeros_stays_zero(sym):
    quantized = rtn(torch.zeros(8, 64), Scheme(group_size=32, sym=sym))
    assert (quantized.dequantize() == 0).all() and (quantized.scales == SMALLEST_SCALE).all()


@pytest.mark.parametrize("sym", [False, True], ids=["asym", "sym"])
def test_a_searched_grid_is_never_worse_than_the_full_range(weight, sym):
    importance = torch.rand(128, generator=torch.Generator().manual_seed(1)) ** 4
    scales, zeros = find_grid(weight, Scheme(group_size=32, sym=sym), importance)
    searched = round_to_grid(weight, scales, zeros, Scheme(group_size=32, sym=sym)).dequantize()
    full = rtn(weight, Scheme(group_size=32, sym=sym)).dequantize()
    loss = [split_groups((rounded - weight) ** 2 * importance, 32).sum(-1) for rounded in (searched, full)]
    assert (loss[0] <= loss[1] * (1 + 1e-5)).all() and loss[0].sum() < 0.9 * loss[1].sum()


@pytest.mark.parametrize("sym", [False, True], ids=["asym", "sym"])
def test_searching_in_slices_never_changes_the_grid(weight, sym, monkeypatch):
    importance = torch.rand(128, generator=torch.Generator().manual_seed(1))
    full = find_grid(weight, Scheme(group_size=32, sym=sym), importance)
    monkeypatch.setattr(grid, "SEARCHED_NUMBERS", 3 * 128)
    parts = find_grid(weight, Scheme(group_size=32, sym=sym), importance)
    assert torch.equal(parts[0], full[0]) and torch.equal(parts[1], full[1])


def test_a_signed_grid_reaches_the_largest_weight_of_either_sign(weight):
    grouped = split_groups(weight, 32)
    scales, zeros = signed_range(*torch.aminmax(grouped, dim=-1), Scheme(dtype=Dtype.float32), 1.0)
    largest = grouped.gather(-1, grouped.abs().argmax(-1, keepdim=True)).squeeze(-1)
    assert torch.equal(-zeros * scales, largest)
    assert ((scales < 0) == (largest > 0)).all() and (scales < 0).any() and (scales > 0).any()


def test_negating_a_weight_negates_its_signed_scales(weight):
    importance = torch.rand(128, generator=torch.Generator().manual_seed(1))
    scales, _ = find_grid(weight, Scheme(group_size=32, sym=True), importance)
    negated, _ = find_grid(-weight, Scheme(group_size=32, sym=True), importance)
    signed = scales.abs() != rtn(weight, Scheme(group_size=32, sym=True)).scales
    assert signed.float().mean() > 0.7 and torch.equal(negated[signed], -scales[signed])


def test_a_group_size_that_does_not_divide_is_an_error_with_both_numbers(weight):
    with pytest.raises(ValueError, match=r"group_size=48 does not divide in_features=128"):
        rtn(weight, Scheme(group_size=48, sym=True))


def test_rows_select_codes_scales_and_zeros(weight):
    full = rtn(weight, Scheme(group_size=32, sym=False))
    assert torch.equal(full.rows(4, 8).dequantize(), full.dequantize()[4:8])


def test_min_max_covers_the_weights(weight):
    scales, zeros = min_max(split_groups(weight, 32), Scheme(dtype=Dtype.float32))
    low, high = -zeros * scales, (15 - zeros) * scales
    grouped = split_groups(weight, 32)
    assert (grouped.amin(-1) >= low - 0.51 * scales).all() and (grouped.amax(-1) <= high + 0.51 * scales).all()
