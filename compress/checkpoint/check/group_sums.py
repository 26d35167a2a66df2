"""Sums over the codes of each group of a packed module, computed with NumPy from the packed words."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.core.scheme import Scheme
from compress.core.words import AWQ_ORDER, Bytes, places, sum_codes, unpack_words

Read = Callable[[str], NDArray[Any]]
Columns = slice | NDArray[Any]


@dataclass(frozen=True)
class GroupSums:
    """The zero of each group, the sum of its `size` codes, and the sum of |code - zero|, each (out, groups)."""

    zeros: NDArray[Any]
    codes: NDArray[Any]
    distances: NDArray[Any]
    size: int
    bits: int
    sym: bool

    @property
    def dead(self) -> NDArray[np.bool_]:
        """The groups whose codes all equal the zero, so that any scale gives 0."""
        return np.asarray(self.distances == 0)


def group_sums(read: Read, format_name: str, scheme: Scheme, columns: Columns = slice(None)) -> GroupSums:
    """The sums of a module. `read` returns its tensors by suffix. `columns` selects the words of some outputs."""
    zeros, codes, distances = SUMS[format_name](read, scheme, columns)
    return GroupSums(zeros, codes, distances, scheme.group_size, scheme.bits, scheme.sym)


def awq_sums(read: Read, scheme: Scheme, columns: Columns) -> tuple[NDArray[Any], ...]:
    """The zeros, sums and distances in AWQ's layout. A word holds one code, or one zero, of each of 8 outputs."""
    words, zero_words = read("qweight")[:, columns], read("qzeros")[:, columns]
    groups, count = zero_words.shape
    zeros, codes, distances = (np.empty((groups, 8 * count), np.int64) for _ in range(3))
    pairs = zip(AWQ_ORDER, places(words, 4), places(zero_words, 4), strict=True)
    for output, part, zero in pairs:
        part = part.reshape(groups, scheme.group_size, count)
        zeros[:, output::8], codes[:, output::8] = zero, sum_codes(part, 1, 4)
        distances[:, output::8] = sum_codes(difference(part, zero[:, None]), 1, 4)
    return zeros.T, codes.T, distances.T


def gptq_sums(read: Read, scheme: Scheme, columns: Columns, offset: int = 1) -> tuple[NDArray[Any], ...]:
    """The zeros, sums and distances in GPTQ's layout. A word holds codes of inputs. Stored zeros are `offset` lower."""
    bits, zero_words, words = scheme.bits, read("qzeros")[:, columns], read("qweight")
    words = words.reshape(len(words), -1, 32 // bits)[:, columns].reshape(len(words), -1)
    zeros = unpack_words(zero_words, bits, 1) + np.uint8(offset)
    codes, distances = np.zeros(zeros.shape, np.int64), np.zeros(zeros.shape, np.int64)
    for part in places(words, bits):
        part = part.reshape(len(zeros), -1, zeros.shape[1])
        codes += sum_codes(part, 1, bits)
        distances += sum_codes(difference(part, zeros[:, None]), 1, bits)
    return zeros.T.astype(np.int64), codes.T, distances.T


def ct_sums(read: Read, scheme: Scheme, columns: Columns) -> tuple[NDArray[Any], ...]:
    """The zeros, sums and distances of compressed-tensors. A word holds codes of inputs, or zeros of outputs."""
    bits, words = scheme.bits, read("weight_packed")
    words = words.reshape(-1, 32 // bits, words.shape[1])[columns].reshape(-1, words.shape[1])
    groups = words.shape[1] * 32 // bits // scheme.group_size
    if scheme.sym:
        zeros = np.full((len(words), groups), 2 ** (bits - 1), np.uint8)
    else:
        zeros = unpack_words(read("weight_zero_point")[columns], bits, 0)
    codes, distances = np.zeros(zeros.shape, np.int64), np.zeros(zeros.shape, np.int64)
    for part in places(words, bits):
        part = part.reshape(len(words), groups, -1)
        codes += sum_codes(part, 2, bits)
        distances += sum_codes(difference(part, zeros[..., None]), 2, bits)
    return zeros.astype(np.int64), codes, distances


def difference(codes: Bytes, zeros: Bytes) -> Bytes:
    """|code - zero|, without an overflow of uint8."""
    return np.maximum(codes, zeros) - np.minimum(codes, zeros)


def gptq_v2_sums(read: Read, scheme: Scheme, columns: Columns) -> tuple[NDArray[Any], ...]:
    return gptq_sums(read, scheme, columns, offset=0)


SUMS = {"awq": awq_sums, "gptq": gptq_sums, "gptq_v2": gptq_v2_sums, "compressed-tensors": ct_sums}
