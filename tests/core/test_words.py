"""Words as NumPy arrays hold the codes that core/pack.py packs into them."""

import numpy as np
import pytest
import torch

from compress.core import pack
from compress.core.words import AWQ_ORDER, places, sum_codes, unpack_words


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dim", [0, 1])
def test_numpy_unpacks_what_torch_packs(bits, dim):
    codes = torch.randint(0, 2**bits, (16, 24), generator=torch.Generator().manual_seed(0)).byte()
    words = pack.pack_words(codes, bits, dim)
    assert np.array_equal(unpack_words(words.numpy(), bits, dim), codes.numpy())
    assert np.array_equal(unpack_words(words.numpy(), bits, dim - 2), codes.numpy())


def test_place_i_of_an_awq_word_is_the_neighbour_in_awq_order():
    codes = torch.randint(0, 16, (24, 5), generator=torch.Generator().manual_seed(1)).byte()
    words = pack.pack_awq(codes).numpy()
    for neighbour, part in zip(AWQ_ORDER, places(words, 4), strict=True):
        assert np.array_equal(part, codes[neighbour::8].T.numpy())


@pytest.mark.parametrize(("bits", "length"), [(4, 128), (4, 12), (4, 5), (8, 96)])
def test_sums_of_the_largest_codes_do_not_overflow(bits, length):
    largest = 16 if bits == 4 else 255  # a distance from a zero of 16 may be 16
    codes = np.full((3, length, 2), largest, np.uint8)
    assert (sum_codes(codes, 1, bits) == length * largest).all()
    assert (sum_codes(codes.swapaxes(1, 2).copy(), -1, bits) == length * largest).all()
