"""The bit layouts: compared with words from the loaders' formulas, with slow loops, and with unpack(pack(x))."""

import pytest
import torch

from compress.core import pack

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # nibble i of a word holds column 8c + AWQ_ORDER[i]
PAIRS = {
    "awq": (pack.pack_awq, pack.unpack_awq),
    "gptq codes": (pack.pack_gptq_codes, pack.unpack_gptq_codes),
    "gptq zeros": (pack.pack_gptq_zeros, pack.unpack_gptq_zeros),
    "ct codes": (pack.pack_ct_codes, pack.unpack_ct_codes),
    "ct zeros": (pack.pack_ct_zeros, pack.unpack_ct_zeros),
}
COUNTING = torch.tensor([list(range(8)), list(range(15, 7, -1))])  # (out 2, in 8): 0..7 and 15..8
ZEROS = torch.tensor([[1], [2], [3], [4], [5], [6], [7], [8]])  # (out 8, groups 1)


def hexadecimal(words: torch.Tensor) -> list[list[str]]:
    """Every int32 word as text of eight hexadecimal digits, the highest bits first."""
    assert words.dtype == torch.int32
    return [[f"{word & 0xFFFFFFFF:08x}" for word in row] for row in words.tolist()]


def test_awq_words_run_along_outputs_in_awq_order():
    codes = torch.tensor([[n, 15 - n] for n in range(16)])  # (out 16, in 2)
    # input 0, outputs 0..7: nibbles 0 2 4 6 1 3 5 7 from the lowest; outputs 8..15: 8 a c e 9 b d f
    # input 1, outputs 0..7: nibbles f d b 9 e c a 8; outputs 8..15: 7 5 3 1 6 4 2 0
    assert hexadecimal(pack.pack_awq(codes)) == [["75316420", "fdb9eca8"], ["8ace9bdf", "02461357"]]


def test_awq_zeros_are_packed_like_codes():
    assert hexadecimal(pack.pack_awq(ZEROS)) == [["86427531"]]


def test_gptq_codes_run_along_inputs():
    assert hexadecimal(pack.pack_gptq_codes(COUNTING)) == [["76543210", "89abcdef"]]


def test_gptq_zeros_are_stored_one_too_small():
    assert hexadecimal(pack.pack_gptq_zeros(ZEROS)) == [["76543210"]]
    assert hexadecimal(pack.pack_gptq_zeros(torch.full((8, 2), 8))) == [["77777777"], ["77777777"]]


def test_gptq_codes_of_8_bits_lie_four_to_a_word():
    assert hexadecimal(pack.pack_gptq_codes(torch.tensor([[1, 2, 3, 255]]), 8)) == [["ff030201"]]
    assert hexadecimal(pack.pack_gptq_zeros(torch.full((4, 1), 128), 8)) == [["7f7f7f7f"]]


def test_ct_codes_run_along_inputs_and_zeros_along_outputs():
    assert hexadecimal(pack.pack_ct_codes(COUNTING)) == [["76543210"], ["89abcdef"]]
    assert hexadecimal(pack.pack_ct_zeros(ZEROS)) == [["87654321"]]


def test_the_first_value_lies_in_the_first_byte_on_disk():
    word = pack.pack_gptq_codes(torch.arange(8)[None])
    assert word.view(torch.uint8).tolist() == [[0x10, 0x32, 0x54, 0x76]]


@pytest.mark.parametrize("name", PAIRS)
def test_pack_then_unpack_is_the_identity(name):
    packed, unpacked = PAIRS[name]
    values = torch.randint(1 if name == "gptq zeros" else 0, 16, (24, 40)).byte()
    assert torch.equal(unpacked(packed(values)), values)


@pytest.mark.parametrize("name", [name for name in PAIRS if name != "awq"])
def test_pack_then_unpack_is_the_identity_for_8_bits(name):
    packed, unpacked = PAIRS[name]
    values = torch.randint(1 if name == "gptq zeros" else 0, 256, (24, 40)).byte()
    assert torch.equal(unpacked(packed(values, 8), 8), values)


@pytest.mark.parametrize("name", PAIRS)
def test_unpack_then_pack_is_the_identity(name):
    packed, unpacked = PAIRS[name]
    words = torch.randint(-(2**31), 2**31, (16, 8), dtype=torch.int32)
    assert torch.equal(packed(unpacked(words)), words)


@pytest.mark.parametrize("name", PAIRS)
def test_values_that_do_not_fill_a_word_are_rejected(name):
    with pytest.raises(ValueError, match="13"):
        PAIRS[name][0](torch.ones(13, 13, dtype=torch.uint8))


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("wrong", [17, -1])
def test_values_of_too_many_bits_are_rejected(name, wrong):
    with pytest.raises(ValueError):
        PAIRS[name][0](torch.full((8, 8), wrong, dtype=torch.int32))


def test_a_gptq_zero_of_0_is_rejected():
    with pytest.raises(ValueError, match="zero"):
        pack.pack_gptq_zeros(torch.zeros(8, 1))


def test_awq_codes_unpack_by_the_formula_of_the_loaders():
    words = torch.randint(-(2**31), 2**31, (3, 2), dtype=torch.int32)
    codes = pack.unpack_awq(words)
    for k, row in enumerate(words.tolist()):
        for c, word in enumerate(row):
            for i in range(8):
                assert codes[8 * c + AWQ_ORDER[i], k] == (word >> (4 * i)) & 15


def test_gptq_codes_unpack_by_the_formula_of_the_loaders():
    words = torch.randint(-(2**31), 2**31, (3, 16), dtype=torch.int32)
    codes, zeros = pack.unpack_gptq_codes(words), pack.unpack_gptq_zeros(words)
    for r, row in enumerate(words.tolist()):
        for n, word in enumerate(row):
            for i in range(8):
                nibble = (word >> (4 * i)) & 15
                assert codes[n, 8 * r + i] == nibble
                assert zeros[8 * n + i, r] == nibble + 1


def slow_stream(values, bits):
    """int32 words that hold the values bit after bit, the lowest bit first."""
    number = sum(int(value) << (bits * place) for place, value in enumerate(values))
    return [(number >> (32 * word)) & 0xFFFFFFFF for word in range(len(values) * bits // 32)]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("dim", [0, 1])
def test_values_that_follow_each_other_across_words_are_unpacked(bits, dim):
    values = torch.randint(0, 2**bits, (5, 64), generator=torch.Generator().manual_seed(0))
    words = torch.tensor([slow_stream(row, bits) for row in values.tolist()])
    words = (words - 2**32 * (words >= 2**31)).to(torch.int32)
    unpacked = pack.unpack_stream(words if dim else words.T, bits, dim)
    assert torch.equal(unpacked if dim else unpacked.T, values.to(torch.uint8))


def test_three_bit_codes_have_the_pinned_places_of_gptq():
    word = [0b01_111_110_101_100_011_010_001_000_111_110, 0, 0]  # value 10 begins with its two low bits
    words = (torch.tensor(word) - 2**32 * (torch.tensor(word) >= 2**31)).to(torch.int32)[:, None]
    assert pack.unpack_gptq_codes(words, 3)[0, :11].tolist() == [6, 7, 0, 1, 2, 3, 4, 5, 6, 7, 1]


def test_words_that_end_within_a_value_are_rejected():
    with pytest.raises(ValueError, match="whole number of 3-bit values"):
        pack.unpack_stream(torch.zeros(4, 2, dtype=torch.int32), 3, 0)
