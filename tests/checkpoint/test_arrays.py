"""Stored tensors as NumPy arrays have the numbers that torch reads."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from compress.checkpoint.arrays import NOT_FINITE, all_finite, all_zero, as_float32, read_array, stored_digest
from compress.checkpoint.read import Checkpoint
from compress.checkpoint.record import tensor_digest
from compress.core.dtypes import Dtype
from compress.core.errors import QCompressError

FLOATS = [dtype for dtype in NOT_FINITE if dtype != Dtype.float8_e8m0fnu]


def stored(folder, **tensors) -> Checkpoint:
    (folder / "config.json").write_text("{}")
    save_file(tensors, folder / "model.safetensors")
    return Checkpoint(folder)


@pytest.mark.parametrize("dtype", [Dtype.float16, Dtype.bfloat16, Dtype.float32])
def test_numbers_are_those_that_torch_reads(tmp_path, dtype):
    tensor = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).to(dtype.torch)
    checkpoint = stored(tmp_path, x=tensor, other=torch.zeros(7, dtype=torch.uint8))
    array = as_float32(read_array(checkpoint, "x"), dtype)
    assert np.array_equal(array, tensor.float().numpy())
    assert stored_digest("x", checkpoint.tensors["x"]) == tensor_digest(tensor)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_are_found_anywhere(tmp_path, dtype, value):
    tensor = torch.ones(2**18 + 3)
    tensor[-1] = -448.0  # the largest e4m3 number is finite
    assert all_finite("x", stored(tmp_path, x=tensor.to(dtype.torch)).tensors["x"])
    tensor[2**18 + 1] = value
    damaged = tensor.to(dtype.torch)
    expected = bool(torch.isfinite(damaged.float()).all())
    assert all_finite("x", stored(tmp_path, x=damaged).tensors["x"]) == expected


@pytest.mark.parametrize("dtype", FLOATS)
def test_zeros_of_either_sign_are_zeros(tmp_path, dtype):
    tensor = torch.tensor([0.0, -0.0, 0.0]).to(dtype.torch)
    assert all_zero("x", stored(tmp_path, x=tensor).tensors["x"])
    tensor = torch.tensor([0.0, 0.0, -1.0]).to(dtype.torch)
    assert not all_zero("x", stored(tmp_path, x=tensor).tensors["x"])


def test_a_file_that_ends_too_early_is_an_error(tmp_path):
    checkpoint = stored(tmp_path, x=torch.ones(8))
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(QCompressError, match="x has 28 of 32 bytes"):
        read_array(checkpoint, "x")
    with pytest.raises(QCompressError, match="no tensor y"):
        read_array(checkpoint, "y")
