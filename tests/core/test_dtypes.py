"""Dtypes by name agree with torch."""

import pytest
import torch

from compress.core.dtypes import Dtype


@pytest.mark.parametrize("dtype", list(Dtype))
def test_a_dtype_has_the_size_and_kind_of_its_torch_dtype(dtype):
    assert dtype.torch.itemsize == dtype.itemsize
    assert dtype.torch.is_floating_point == dtype.is_floating_point
    assert Dtype.of(dtype.torch) is dtype and str(dtype.torch) == f"torch.{dtype}"


def test_a_dtype_equals_its_name():
    assert Dtype.float16 == "float16" and Dtype("bfloat16") in {"bfloat16"} and Dtype.of(torch.int32) == "int32"
