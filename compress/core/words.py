"""Packed int32 words as NumPy arrays, for checks that need no torch. `core/pack.py` is the twin for tensors.

A little-endian word is four bytes; a byte is one 8-bit code, or two 4-bit codes with the first in its lower half.
"""

from collections.abc import Iterator
from math import gcd
from typing import Any

import numpy as np
from numpy.typing import NDArray

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # nibble i of an AWQ word holds neighbour AWQ_ORDER[i]
SAFE = 8  # so many distances of 4-bit codes, at most 16 each, sum to less than 256
Bytes = NDArray[np.uint8]
Words = NDArray[np.int32]


def places(words: Words, bits: int) -> Iterator[Bytes]:
    """The codes at each place of the words, first to last: 32 / bits arrays in the shape of `words`."""
    split = np.ascontiguousarray(words).view(np.uint8).reshape(*words.shape, 4)
    for index in range(4):
        byte: Bytes = np.ascontiguousarray(split[..., index])
        if bits == 8:
            yield byte
        else:
            yield np.bitwise_and(byte, np.uint8(15))
            yield np.floor_divide(byte, np.uint8(16))


def unpack_words(words: Words, bits: int, axis: int) -> Bytes:
    """Unpack words along `axis` to 32 / bits codes each."""
    axis %= words.ndim
    shape = [*words.shape]
    shape[axis] *= 32 // bits
    return np.stack([*places(words, bits)], axis + 1).reshape(shape)


def sum_codes(codes: Bytes, axis: int, bits: int) -> NDArray[np.int64]:
    """The sums along one axis of codes below 2**bits. 4-bit codes are first summed as bytes, SAFE at a time."""
    axis %= codes.ndim
    step = gcd(codes.shape[axis], SAFE) if bits == 4 else 1
    shape = (*codes.shape[:axis], codes.shape[axis] // step, step, *codes.shape[axis + 1 :])
    parts: NDArray[Any] = codes.reshape(shape).sum(axis + 1, dtype=np.uint8)
    return parts.sum(axis, dtype=np.int64)
