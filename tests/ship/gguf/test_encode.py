import numpy as np
import pytest
import torch
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize

from compress.core.grid import QuantizedWeight
from compress.ship.gguf.encode import BYTES, block_type, encode


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
    assert block_type(weight) == name
    blocks = encode(weight, name)
    assert blocks.shape == (24, 256 // 32 * BYTES[name])
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
