"""Pack 4- and 8-bit codes into int32 words, and unpack them. No other file shifts bits.

Every pack function has an unpack function, so that unpack(pack(x)) = x.
In memory, codes are (out, in) and zeros (out, groups), both uint8. A word holds neighbours along one axis:

    awq                 codes and zeros: along out; nibble i of a word holds the neighbour AWQ_ORDER[i]
    gptq                codes: along in, in order; zeros: along out, in order, each stored as zero - 1 ("v1"), or as
                        it is ("v2"); 3-bit values are only read: they follow each other across words
    compressed-tensors  codes: along in, in order; zeros: along out, in order
    ggml                blocks of 32 codes along in; byte i of a block holds codes i (low bits) and i + 16

Sources: AutoAWQ (packing_utils.py), GPTQModel (qlinear), compressed-tensors (pack_quantized), ggml (ggml-common.h).
"""

import torch
from torch import Tensor

from compress.core.words import AWQ_ORDER

AWQ_POSITION = tuple(AWQ_ORDER.index(column) for column in range(8))


def pack_words(values: Tensor, bits: int, dim: int) -> Tensor:
    """Pack values 0..2**bits-1 along `dim`. An int32 word holds 32 / bits values, the first one in the lowest bits.

    Raises ValueError if a value needs more bits, or if the length of `dim` is not a multiple of 32 / bits.
    """
    per_word = 32 // bits
    if values.shape[dim] % per_word:
        raise ValueError(
            f"{values.shape[dim]} values along dim {dim}: not a multiple of {per_word}, the number of codes in a word"
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
    """Unpack int32 words along `dim` to 32 / bits uint8 values each. The reverse of `pack_words`."""
    mask = 2**bits - 1
    parts = [((words >> (bits * place)) & mask).to(torch.uint8) for place in range(32 // bits)]
    dim = dim % words.ndim
    return torch.stack(parts, dim + 1).flatten(dim, dim + 1)


def unpack_stream(words: Tensor, bits: int, dim: int) -> Tensor:
    """Unpack int32 words along `dim` to uint8 values that follow each other without gaps, also across words.

    32 / bits need not be whole: GPTQ's 3-bit values lie so. Raises ValueError if the words end within a value.
    """
    if words.shape[dim] * 32 % bits:
        raise ValueError(f"{words.shape[dim]} words along dim {dim} do not hold a whole number of {bits}-bit values")
    lines = words.movedim(dim, -1).to(torch.int64) & 0xFFFFFFFF
    starts = torch.arange(0, 32 * lines.shape[-1], bits, device=words.device)
    first, places = starts // 32, starts % 32
    following = torch.cat([lines[..., 1:], torch.zeros_like(lines[..., :1])], -1)
    values = (lines[..., first] >> places) | (following[..., first] << (32 - places))
    return (values & (2**bits - 1)).to(torch.uint8).movedim(-1, dim).contiguous()


def pack_awq(values: Tensor) -> Tensor:
    """Pack 4-bit codes or zeros (out, n) into int32 words (n, out / 8)."""
    if len(values) % 8:
        raise ValueError(f"{len(values)} outputs: not a multiple of 8, the number of codes in a word")
    return pack_words(values.T.unflatten(1, (-1, 8))[..., AWQ_ORDER].flatten(1), 4, 1)


def unpack_awq(words: Tensor) -> Tensor:
    """Unpack int32 words (n, out / 8) to codes or zeros (out, n) uint8."""
    values = unpack_words(words, 4, 1)
    return values.unflatten(1, (-1, 8))[..., AWQ_POSITION].flatten(1).T.contiguous()


def pack_gptq_codes(codes: Tensor, bits: int = 4) -> Tensor:
    """Pack codes (out, in) into int32 words (in · bits / 32, out)."""
    return pack_words(codes.T, bits, 0)


def unpack_gptq_codes(words: Tensor, bits: int = 4) -> Tensor:
    """Unpack int32 words (in · bits / 32, out) to codes (out, in) uint8."""
    return (unpack_words if 32 % bits == 0 else unpack_stream)(words, bits, 0).T.contiguous()


def pack_gptq_zeros(zeros: Tensor, bits: int = 4) -> Tensor:
    """Pack zeros (out, groups) into int32 words (groups, out · bits / 32). Each zero is stored as zero - 1.

    Raises ValueError if a zero is 0.
    """
    if (zeros < 1).any():
        raise ValueError("a zero is 0, which the gptq v1 layout cannot store, because it stores zero - 1")
    return pack_words(zeros.T.to(torch.int32) - 1, bits, 1)


def unpack_gptq_zeros(words: Tensor, bits: int = 4, offset: int = 1) -> Tensor:
    """Unpack int32 words (groups, out · bits / 32) to zeros (out, groups) int16, from 1 to 2**bits.

    The layout gptq_v2 stores the zeros themselves: there, `offset` is 0.
    """
    unpack = unpack_words if 32 % bits == 0 else unpack_stream
    return (unpack(words, bits, 1).to(torch.int16) + offset).T.contiguous()


def pack_ct_codes(codes: Tensor, bits: int = 4) -> Tensor:
    """Pack codes (out, in) into int32 words (out, in · bits / 32)."""
    return pack_words(codes, bits, 1)


def unpack_ct_codes(words: Tensor, bits: int = 4) -> Tensor:
    """Unpack int32 words (out, in · bits / 32) to codes (out, in) uint8."""
    return unpack_words(words, bits, 1)


def pack_ct_zeros(zeros: Tensor, bits: int = 4) -> Tensor:
    """Pack zeros (out, groups) into int32 words (out · bits / 32, groups)."""
    return pack_words(zeros, bits, 0)


def unpack_ct_zeros(words: Tensor, bits: int = 4) -> Tensor:
    """Unpack int32 words (out · bits / 32, groups) to zeros (out, groups) uint8."""
    return unpack_words(words, bits, 0)


GGML_BLOCK = 32  # codes that share a scale in a .gguf file


def pack_ggml_nibbles(codes: Tensor) -> Tensor:
    """Pack codes 0..15 (out, in) into bytes (out, in / 32, 16) uint8. Raises ValueError if 32 does not divide in."""
    if codes.shape[1] % GGML_BLOCK:
        raise ValueError(f"{codes.shape[1]} inputs: not a multiple of {GGML_BLOCK}, the number of codes in a block")
    halves = codes.to(torch.uint8).unflatten(1, (-1, 2, GGML_BLOCK // 2))
    return halves[:, :, 0] | (halves[:, :, 1] << 4)


def pack_ggml_high_bits(codes: Tensor) -> Tensor:
    """Pack the fifth bits of codes 0..31 (out, in) into bytes (out, in / 32, 4) uint8, the first code lowest."""
    bits = (codes.to(torch.uint8) >> 4).unflatten(1, (-1, 4, 8))
    places = torch.arange(8, dtype=torch.uint8, device=codes.device)
    return (bits << places).sum(-1, dtype=torch.uint8)


def pack_ggml_six_bits(codes: Tensor) -> Tensor:
    """Pack codes 0..63 (out, in) into bytes (out, in / 256, 192) uint8, as in Q6_K: first the low 4 bits of all codes.

    Bytes hold codes that lie 64 apart, and their high bits codes that lie 32 apart.
    """
    quarters = codes.to(torch.uint8).unflatten(1, (-1, 2, 4, 32))  # halves of a block, in four quarters
    low = quarters[..., :2, :] & 15 | (quarters[..., 2:, :] & 15) << 4
    high = quarters >> 4
    places = torch.arange(0, 8, 2, dtype=torch.uint8, device=codes.device)[:, None]
    return torch.cat([low.flatten(2), (high << places).sum(-2, dtype=torch.uint8).flatten(2)], dim=-1)


def pack_ids(ids: Tensor) -> Tensor:
    """Pack token ids (…, n) into bytes (…, 3n) uint8: the 3 low bytes of each id, little-endian.

    Raises ValueError if an id is negative or needs more than 3 bytes.
    """
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < 2**24:
        raise ValueError(f"token ids {int(ids.min())} to {int(ids.max())} do not fit in 3 bytes")
    words = ids.to("cpu", torch.int32).contiguous().view(torch.uint8)
    return words.unflatten(-1, (-1, 4))[..., :3].flatten(-2).contiguous()


def unpack_ids(packed: Tensor) -> Tensor:
    """Unpack bytes (…, 3n) uint8 to token ids (…, n) int64. The reverse of `pack_ids`."""
    triples = packed.unflatten(-1, (-1, 3))
    words = torch.cat([triples, torch.zeros_like(triples[..., :1])], -1)
    return words.flatten(-2).view(torch.int32).long()
