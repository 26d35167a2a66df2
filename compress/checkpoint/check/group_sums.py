"""Sums over each group of a packed module, from its words: what codes without a source can show. NumPy only."""

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
    """Per group, (out, groups): its zero, the sum of its `size` codes, and the sum of |code - zero|."""

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
    """The sums of a module whose tensors `read` returns by suffix. `columns` selects words of outputs; default: all."""
    zeros, codes, distances = SUMS[format_name](read, scheme, columns)
    return GroupSums(zeros, codes, distances, scheme.group_size, scheme.bits, scheme.sym)


def awq_sums(read: Read, scheme: Scheme, columns: Columns) -> tuple[NDArray[Any], ...]:
    """Words along the outputs: a place of a word is one output in eight, and so is that of its zeros."""
    words, zero_words = read("qweight")[:, columns], read("qzeros")[:, columns]
    groups, count = zero_words.shape
    zeros, codes, distances = (np.empty((groups, 8 * count), np.int64) for _ in range(3))
    pairs = zip(AWQ_ORDER, places(words, 4), places(zero_words, 4), strict=True)
    for output, part, zero in pairs:
        part = part.reshape(groups, scheme.group_size, count)
        zeros[:, output::8], codes[:, output::8] = zero, sum_codes(part, 1, 4)
        distances[:, output::8] = sum_codes(difference(part, zero[:, None]), 1, 4)
    return zeros.T, codes.T, distances.T


def gptq_sums(read: Read, scheme: Scheme, columns: Columns) -> tuple[NDArray[Any], ...]:
    """Words along the inputs. A zero is stored as zero - 1."""
    bits, zero_words, words = scheme.bits, read("qzeros")[:, columns], read("qweight")
    words = words.reshape(len(words), -1, 32 // bits)[:, columns].reshape(len(words), -1)
    zeros = unpack_words(zero_words, bits, 1) + np.uint8(1)
    codes, distances = np.zeros(zeros.shape, np.int64), np.zeros(zeros.shape, np.int64)
    for part in places(words, bits):
        part = part.reshape(len(zeros), -1, zeros.shape[1])
        codes += sum_codes(part, 1, bits)
        distances += sum_codes(difference(part, zeros[:, None]), 1, bits)
    return zeros.T.astype(np.int64), codes.T, distances.T


def ct_sums(read: Read, scheme: Scheme, columns: Columns) -> tuple[NDArray[Any], ...]:
    """Words along the inputs; words of zeros along the outputs."""
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
    """|code - zero|."""
    return np.maximum(codes, zeros) - np.minimum(codes, zeros)


SUMS = {"awq": awq_sums, "gptq": gptq_sums, "compressed-tensors": ct_sums}
