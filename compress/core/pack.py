"""The bit layouts of 4- and 8-bit codes in int32 words. No other file shifts bits.

Every pack function has an unpack function, with unpack(pack(x)) = x.
In memory, codes are (out, in) and zeros (out, groups), both uint8.

    awq                 words run along out, nibble i of a word holds column AWQ_ORDER[i]
    gptq                codes: words run along in, in order; zeros: along out, each stored as zero - 1 ("v1")
    compressed-tensors  codes: words run along in, in order; zeros: along out, in order

Sources: AutoAWQ (packing_utils.py), GPTQModel (qlinear), compressed-tensors (pack_quantized).
"""

import torch
from torch import Tensor

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
AWQ_POSITION = tuple(AWQ_ORDER.index(column) for column in range(8))


def pack_words(values: Tensor, bits: int, dim: int) -> Tensor:
    """Values 0..2**bits-1 -> int32, `dim` shorter by 32/bits; the first value takes the lowest bits.

    ValueError for values that need more bits, or a length that does not fill whole words.
    """
    per_word = 32 // bits
    if values.shape[dim] % per_word:
        raise ValueError(
            f"{values.shape[dim]} values along dim {dim}: must be a multiple of {per_word}, the codes in an int32 word"
        )
    low, high = (int(values.min()), int(values.max())) if values.numel() else (0, 0)
    if low < 0 or high >= 2**bits:
        raise ValueError(f"values {low} to {high} do not fit in {bits} bits")
    parts = values.to(torch.int32).unflatten(dim, (-1, per_word)).movedim(dim + 1 if dim >= 0 else dim, -1)
    words = torch.zeros(parts.shape[:-1], dtype=torch.int32, device=values.device)
    for place in range(per_word):
        words |= parts[..., place] << (bits * place)
    return words.contiguous()


def unpack_words(words: Tensor, bits: int, dim: int) -> Tensor:
    """int32 -> uint8 values, `dim` longer by 32/bits. The reverse of pack_words."""
    mask = 2**bits - 1
    parts = [((words >> (bits * place)) & mask).to(torch.uint8) for place in range(32 // bits)]
    dim = dim % words.ndim
    return torch.stack(parts, dim + 1).flatten(dim, dim + 1)


def pack_awq(values: Tensor) -> Tensor:
    """(out, n) 4-bit codes or zeros -> (n, out / 8) int32."""
    if len(values) % 8:
        raise ValueError(f"{len(values)} outputs: must be a multiple of 8, the codes in an int32 word")
    return pack_words(values.T.unflatten(1, (-1, 8))[..., AWQ_ORDER].flatten(1), 4, 1)


def unpack_awq(words: Tensor) -> Tensor:
    """(n, out / 8) int32 -> (out, n) uint8."""
    values = unpack_words(words, 4, 1)
    return values.unflatten(1, (-1, 8))[..., AWQ_POSITION].flatten(1).T.contiguous()


def pack_gptq_codes(codes: Tensor, bits: int = 4) -> Tensor:
    """(out, in) -> (in · bits / 32, out) int32."""
    return pack_words(codes.T, bits, 0)


def unpack_gptq_codes(words: Tensor, bits: int = 4) -> Tensor:
    """(in · bits / 32, out) int32 -> (out, in) uint8."""
    return unpack_words(words, bits, 0).T.contiguous()


def pack_gptq_zeros(zeros: Tensor, bits: int = 4) -> Tensor:
    """(out, groups) -> (groups, out · bits / 32) int32, each zero stored as zero - 1. ValueError for a zero of 0."""
    if (zeros < 1).any():
        raise ValueError("the gptq v1 layout stores zero - 1: a zero of 0 cannot be written")
    return pack_words(zeros.T.to(torch.int32) - 1, bits, 1)


def unpack_gptq_zeros(words: Tensor, bits: int = 4) -> Tensor:
    """(groups, out · bits / 32) int32 -> (out, groups) uint8 zeros, 1..2**bits."""
    return (unpack_words(words, bits, 1) + 1).T.contiguous()


def pack_ct_codes(codes: Tensor, bits: int = 4) -> Tensor:
    """(out, in) -> (out, in · bits / 32) int32."""
    return pack_words(codes, bits, 1)


def unpack_ct_codes(words: Tensor, bits: int = 4) -> Tensor:
    """(out, in · bits / 32) int32 -> (out, in) uint8."""
    return unpack_words(words, bits, 1)


def pack_ct_zeros(zeros: Tensor, bits: int = 4) -> Tensor:
    """(out, groups) -> (out · bits / 32, groups) int32."""
    return pack_words(zeros, bits, 0)


def unpack_ct_zeros(words: Tensor, bits: int = 4) -> Tensor:
    """(out · bits / 32, groups) int32 -> (out, groups) uint8."""
    return unpack_words(words, bits, 0)


def pack_ids(ids: Tensor) -> Tensor:
    """Token ids (…, n) -> uint8 (…, 3n), the low 3 bytes of each, little-endian. ValueError for ids >= 2²⁴."""
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < 2**24:
        raise ValueError(f"ids {int(ids.min())} to {int(ids.max())} do not fit in 3 bytes")
    words = ids.to("cpu", torch.int32).contiguous().view(torch.uint8)
    return words.unflatten(-1, (-1, 4))[..., :3].flatten(-2).contiguous()


def unpack_ids(packed: Tensor) -> Tensor:
    """uint8 (…, 3n) -> ids (…, n) int64. The reverse of pack_ids."""
    triples = packed.unflatten(-1, (-1, 3))
    words = torch.cat([triples, torch.zeros_like(triples[..., :1])], -1)
    return words.flatten(-2).view(torch.int32).long()
