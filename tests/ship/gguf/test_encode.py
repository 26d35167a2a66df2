import numpy as np
import pytest
import torch
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize

from compress.core.grid import QuantizedWeight
from compress.ship.gguf.encode import BLOCKS, block_type, check_rows, encode, encode_plain


def random_weight(bits=4, group_size=64, *, sym=False, dtype=torch.float16):
    generator = torch.Generator().manual_seed(bits + group_size)
    codes = torch.randint(0, 2**bits, (24, 256), generator=generator).to(torch.uint8)
    scales = (torch.randn(24, 256 // group_size, generator=generator) / 50).to(dtype).float()
    zeros = torch.randint(0, 2**bits, scales.shape, generator=generator).float()
    return QuantizedWeight(codes, scales, torch.full_like(zeros, 2 ** (bits - 1)) if sym else zeros, bits, sym)


@pytest.mark.parametrize("group_size", [32, 64, 128, 256])
@pytest.mark.parametrize(("bits", "sym", "name"), [(4, True, "Q4_0"), (4, False, "Q5_0"), (8, True, "Q8_0")])
def test_gguf_dequantizes_to_the_same_weight_bit_by_bit(bits, sym, name, group_size):
    weight = random_weight(bits, group_size, sym=sym)
    assert block_type(weight) == (name, True)
    blocks = encode(weight, name)
    assert blocks.shape == (24, 256 // 32 * BLOCKS[name][1])
    values = dequantize(blocks, GGMLQuantizationType[name])
    np.testing.assert_array_equal(values, weight.dequantize().numpy())


def test_extreme_codes_and_zeros_survive():
    codes = torch.tensor([[0, 15] * 16, [15, 0] * 16], dtype=torch.uint8)
    weight = QuantizedWeight(codes, torch.tensor([[0.5], [-0.25]]), torch.tensor([[0.0], [15.0]]))
    values = dequantize(encode(weight, "Q5_0"), GGMLQuantizationType.Q5_0)
    np.testing.assert_array_equal(values, weight.dequantize().numpy())


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (random_weight(group_size=16), "groups of 16 weights are not whole blocks of 32"),
        (random_weight(8), "no ggml type holds 8 bits with zero points"),
        (random_weight(dtype=torch.float32), "a scale is not a float16 number"),
    ],
)
def test_a_weight_that_no_type_holds_is_an_error(weight, message):
    with pytest.raises(ValueError, match=message):
        block_type(weight)


def test_zero_points_without_rounding_take_5_bits():
    weight = random_weight()
    weight.scales[:] = torch.randint(1, 128, weight.scales.shape, generator=torch.Generator().manual_seed(4)) / 1024
    assert block_type(weight) == ("Q4_1", True)
    values = dequantize(encode(weight, "Q4_1"), GGMLQuantizationType.Q4_1)
    np.testing.assert_array_equal(values, weight.dequantize().numpy())


@pytest.mark.parametrize(
    ("weight", "name", "most"),
    [
        (random_weight(), "Q4_1", 0.001),
        (random_weight(dtype=torch.float32), "Q4_1", 0.001),
        (random_weight(sym=True, dtype=torch.float32), "Q4_0", 0.001),
        (random_weight(8), "Q8_0", 0.01),
    ],
)
def test_an_allowed_error_is_small_and_not_zero(weight, name, most):
    assert block_type(weight, allow_error=True) == (name, False)
    values = torch.from_numpy(dequantize(encode(weight, name), GGMLQuantizationType[name]))
    error = (values - weight.dequantize()).norm() / weight.dequantize().norm()
    assert 0 < error < most


def test_a_scale_beyond_float16_is_always_an_error():
    weight = random_weight(dtype=torch.float32, sym=True)
    weight.scales[0, 0] = 70000.0
    with pytest.raises(ValueError, match="a scale is too large for float16"):
        block_type(weight, allow_error=True)


@pytest.mark.parametrize(("columns", "name", "cure"), [(288, "Q6_K", "q8_0"), (48, "Q8_0", None)])
def test_rows_that_are_no_whole_blocks_are_refused(columns, name, cure):
    check_rows(512, name)
    with pytest.raises(ValueError, match=f"rows of {columns} values are not whole blocks") as caught:
        check_rows(columns, name)
    assert ("--embedding-type q8_0" in str(caught.value)) is (cure is not None)


@pytest.mark.parametrize("name", ["Q8_0", "Q6_K"])
def test_a_matrix_rounded_in_parts_equals_the_whole(monkeypatch, name):
    values = torch.randn(10, 512, generator=torch.Generator().manual_seed(5)).to(torch.bfloat16)
    whole = encode_plain(values, name)
    monkeypatch.setattr("compress.ship.gguf.encode.ROWS", 3 * 512)
    np.testing.assert_array_equal(encode_plain(values, name), whole)
    assert whole.nbytes == 10 * 512 // BLOCKS[name][0] * BLOCKS[name][1]
