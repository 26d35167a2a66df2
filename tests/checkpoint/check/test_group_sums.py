"""Sums over groups, from the words alone, equal those of the unpacked weight."""

import numpy as np
import pytest
import torch

from compress.checkpoint.check.code_rules import implausible_codes, sample
from compress.checkpoint.check.group_sums import group_sums
from compress.checkpoint.formats import FORMATS
from compress.core.grid import QuantizedWeight
from compress.core.scheme import Scheme

LAYOUTS = [
    ("awq", 4, False),
    ("gptq", 4, True),
    ("gptq", 8, True),
    ("compressed-tensors", 4, True),
    ("compressed-tensors", 4, False),
    ("compressed-tensors", 8, True),
]


def packed(name: str, bits: int, sym: bool) -> tuple[QuantizedWeight, dict[str, np.ndarray], Scheme]:
    """A random weight of 24 outputs and 96 inputs in groups of 32, and its packed tensors."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 2**bits, (24, 96), generator=generator).byte()
    middle = torch.full((24, 3), 2.0 ** (bits - 1))
    zeros = middle if sym else torch.randint(1, 16, (24, 3), generator=generator).float()
    codes[5, 32:64] = int(zeros[5, 1])  # a dead group
    weight = QuantizedWeight(codes, torch.ones(24, 3), zeros, bits, sym)
    tensors = FORMATS[name].save(weight, torch.float16)
    return weight, {suffix: tensor.numpy() for suffix, tensor in tensors.items()}, Scheme(bits, 32, sym)


@pytest.mark.parametrize(("name", "bits", "sym"), LAYOUTS)
def test_sums_from_words_equal_those_of_the_codes(name, bits, sym):
    weight, tensors, scheme = packed(name, bits, sym)
    sums = group_sums(tensors.__getitem__, name, scheme)
    codes = weight.codes.unflatten(1, (3, 32)).long().numpy()
    assert np.array_equal(sums.zeros, weight.zeros.numpy())
    assert np.array_equal(sums.codes, codes.sum(-1))
    assert np.array_equal(sums.distances, np.abs(codes - weight.zeros.long().numpy()[..., None]).sum(-1))
    assert np.argwhere(sums.dead).tolist() == [[5, 1]]


@pytest.mark.parametrize(("name", "bits", "sym"), LAYOUTS)
def test_chosen_words_give_the_sums_of_their_outputs(name, bits, sym):
    _, tensors, scheme = packed(name, bits, sym)
    whole, per_word = group_sums(tensors.__getitem__, name, scheme), 32 // bits
    part = group_sums(tensors.__getitem__, name, scheme, np.array([1]))
    rows = slice(per_word, 2 * per_word)
    assert np.array_equal(part.codes, whole.codes[rows]) and np.array_equal(part.zeros, whole.zeros[rows])
    assert np.array_equal(part.distances, whole.distances[rows])


def test_permuted_zeros_do_not_correlate_with_their_codes():
    _, tensors, scheme = packed("compressed-tensors", 4, False)
    rows = list(implausible_codes(group_sums(tensors.__getitem__, "compressed-tensors", scheme)))
    assert rows[-1]["value"].startswith("correlation")


def test_a_sample_has_different_words_in_order():
    assert sample(8, 8) == slice(None)
    chosen = sample(1000, 128)
    assert len({*chosen}) == 128 and (np.diff(chosen) > 0).all() and chosen.max() > 900
