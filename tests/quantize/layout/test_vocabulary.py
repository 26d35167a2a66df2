"""Head and embedding: slices never change the result, and the error of the search is at most that of rounding."""

import pytest
import torch

from compress.checkpoint.formats import FORMATS
from compress.core.dtypes import Dtype
from compress.core.grid import Scheme
from compress.quantize.layout import vocabulary as tables

KINDS = [("awq", 4, False), ("gptq", 4, True), ("gptq", 8, True)]
KINDS += [("compressed-tensors", 4, False), ("compressed-tensors", 4, True), ("compressed-tensors", 8, True)]


def weight(rows=80):
    return torch.randn(rows, 64, generator=torch.Generator().manual_seed(3)).half()


@pytest.mark.parametrize(("name", "bits", "sym"), KINDS)
def test_slices_never_change_the_result(monkeypatch, name, bits, sym):
    row, scheme = FORMATS[name], Scheme(bits, 32, sym, Dtype.float16)
    whole, line = tables.pack_table(weight(), row, scheme)
    monkeypatch.setattr(tables, "ROWS", 24)
    sliced, other = tables.pack_table(weight(), row, scheme)
    assert line["error"] == pytest.approx(other["error"]) and line["bits"] == bits
    assert whole.keys() == sliced.keys() and all(torch.equal(whole[key], sliced[key]) for key in whole)
    expected = {spec.name: (spec.dtype, spec.shape) for spec in row.specs(80, 64, scheme)}
    assert {key: (Dtype.of(tensor.dtype), (*tensor.shape,)) for key, tensor in sliced.items()} == expected


@pytest.mark.parametrize(("name", "bits", "sym"), KINDS)
def test_the_reported_error_is_that_of_the_packed_table(name, bits, sym):
    row, scheme = FORMATS[name], Scheme(bits, 32, sym, Dtype.float16)
    parts, line = tables.pack_table(weight(), row, scheme)
    unpacked = row.load(parts.__getitem__, scheme).dequantize()
    source = weight().float()
    error = ((unpacked - source).square().sum() / source.square().sum()).item()
    assert error == pytest.approx(line["error"], rel=1e-4)
    assert line["error"] < line["rtn_error"] if bits == 4 else line["error"] == line["rtn_error"]


def test_a_symmetric_table_may_have_any_number_of_rows():
    scheme = Scheme(8, 64, True, Dtype.float16)
    parts, _ = tables.pack_table(weight(77), FORMATS["compressed-tensors"], scheme)
    assert parts["weight_packed"].shape == (77, 16) and parts["weight_shape"].tolist() == [77, 64]


def test_a_table_of_zeros_stays_zero():
    for bits in (4, 8):
        scheme = Scheme(bits, 64, True, Dtype.float16)
        parts, line = tables.pack_table(torch.zeros(16, 64).half(), FORMATS["compressed-tensors"], scheme)
        assert not FORMATS["compressed-tensors"].load(parts.__getitem__, scheme).dequantize().any()
        assert line["error"] == 0
