"""Weights as ggml blocks. Codes and scales of a quantized weight are only packed in another way.

    grid               ggml type  stored weight   bits per weight
    4 bits, symmetric  Q4_0       (q - 8) · d      4.5
    4 bits, with zeros Q4_1       q · d + m        5.0   if every m = -zero · d is a float16 number
    4 bits, with zeros Q5_0       (u - 16) · d     5.5   u = q - zero + 16, which fits in 5 bits
    8 bits, symmetric  Q8_0       q · d            8.5

A group of 64 or 128 weights becomes two or four blocks with the same scale d. With `allow_error`, scales and m are
rounded to float16, and 8 bits with zero points are quantized again. The block layouts:
https://github.com/ggml-org/llama.cpp/blob/master/ggml/src/ggml-common.h
"""

import numpy as np
import torch
from torch import Tensor

from compress.core.errors import BadValueError
from compress.core.grid import QuantizedWeight
from compress.core.pack import GGML_BLOCK, pack_ggml_high_bits, pack_ggml_nibbles
from compress.ship.gguf.q6_k import SUPER_BLOCK, quantize_q6_k

BLOCKS = {  # ggml type -> weights of a block, bytes of a block
    **{"F32": (1, 4), "F16": (1, 2), "BF16": (1, 2)},
    **{"Q4_0": (GGML_BLOCK, 18), "Q4_1": (GGML_BLOCK, 20), "Q5_0": (GGML_BLOCK, 22), "Q8_0": (GGML_BLOCK, 34)},
    "Q6_K": (SUPER_BLOCK, 210),
}
TYPES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}  # dtype of a stored tensor -> ggml type
ROWS = 2**22  # weights of a plain matrix that are quantized at a time


def block_type(weight: QuantizedWeight, *, allow_error: bool = False) -> tuple[str, bool]:
    """The ggml type of a weight, and whether the type stores it exactly.

    Raises ValueError, with the reason, if no type stores it exactly. With `allow_error`, only a weight that no type
    can store is an error.
    """
    if weight.group_size % GGML_BLOCK:
        raise BadValueError(f"groups of {weight.group_size} weights are not whole blocks of {GGML_BLOCK}")
    exact = is_half(weight.scales)
    if not exact and not allow_error:
        raise BadValueError(
            "a scale is not a float16 number, and ggml stores scales in float16; --allow-error rounds the scales"
        )
    if not weight.scales.half().isfinite().all():
        raise BadValueError("a scale is too large for float16, in which ggml stores scales")
    if weight.bits == 8:
        return "Q8_0", exact and symmetric_8_bits(weight, allow_error)
    if weight.has_middle_zeros:
        return "Q4_0", exact
    small = exact and is_half(minima(weight))
    return ("Q4_1", small) if small or allow_error else ("Q5_0", True)


def symmetric_8_bits(weight: QuantizedWeight, allow_error: bool) -> bool:
    """Whether a weight of 8 bits is symmetric. Raises ValueError if it is not, and no error is allowed."""
    if not weight.has_middle_zeros and not allow_error:
        raise BadValueError(
            "no ggml type holds 8 bits with zero points; quantize with a symmetric grid, or give --allow-error to "
            "quantize this weight again"
        )
    return weight.has_middle_zeros


def is_half(values: Tensor) -> bool:
    """Whether all values are float16 numbers."""
    return torch.equal(values.half().float(), values)


def minima(weight: QuantizedWeight) -> Tensor:
    """The weight of code 0 in each group: -zero · scale."""
    return -weight.zeros * weight.scales


def encode(weight: QuantizedWeight, name: str) -> np.ndarray:
    """The bytes of a weight in the ggml type `name`, as uint8 (out, blocks · bytes per block)."""
    if name == "Q8_0" and not weight.has_middle_zeros:
        return encode_plain(weight.dequantize(), name)
    parts = [half_bytes(weight, weight.scales), *ENCODERS[name](weight)]
    return torch.cat(parts, dim=-1).flatten(1).contiguous().numpy()


def half_bytes(weight: QuantizedWeight, values: Tensor) -> Tensor:
    """One value per group as float16 bytes, repeated for each of the group's blocks: (out, blocks, 2) uint8."""
    return values.repeat_interleave(weight.group_size // GGML_BLOCK, dim=1).half()[..., None].view(torch.uint8)


def q4_0(weight: QuantizedWeight) -> list[Tensor]:
    return [pack_ggml_nibbles(weight.codes)]


def q4_1(weight: QuantizedWeight) -> list[Tensor]:
    return [half_bytes(weight, minima(weight)), pack_ggml_nibbles(weight.codes)]


def q5_0(weight: QuantizedWeight) -> list[Tensor]:
    zeros = weight.zeros.repeat_interleave(weight.group_size, dim=1)
    codes = (weight.codes.float() - zeros + 16).to(torch.uint8)
    return [pack_ggml_high_bits(codes), pack_ggml_nibbles(codes % 16)]


def q8_0(weight: QuantizedWeight) -> list[Tensor]:
    codes = (weight.codes.to(torch.int16) - 128).to(torch.int8)
    return [codes.unflatten(1, (-1, GGML_BLOCK)).view(torch.uint8)]


ENCODERS = {"Q4_0": q4_0, "Q4_1": q4_1, "Q5_0": q5_0, "Q8_0": q8_0}


def plain_bytes(tensor: Tensor) -> np.ndarray:
    """The bytes of an unquantized tensor, as uint8 (rows, bytes per row)."""
    rows = tensor.reshape(-1, tensor.shape[-1]).contiguous()
    return rows.view(torch.uint8).numpy()


def check_rows(columns: int, name: str) -> None:
    """Raises ValueError unless rows of so many values are whole blocks of a ggml type."""
    block = BLOCKS[name][0]
    if columns % block:
        cure = "; use --embedding-type q8_0" if name == "Q6_K" and columns % GGML_BLOCK == 0 else ""
        raise BadValueError(f"rows of {columns} values are not whole blocks of {block}, so {name} cannot hold it{cure}")


def encode_plain(tensor: Tensor, name: str) -> np.ndarray:
    """The bytes of an unquantized matrix in a type that rounds it, as uint8 (rows, bytes per row)."""
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    parts = [part.float() for part in tensor.split(max(1, ROWS // tensor.shape[1]))]
    if name == "Q6_K":
        return np.concatenate([quantize_q6_k(part).numpy() for part in parts])
    return np.concatenate([quantize(part.numpy(), GGMLQuantizationType[name]) for part in parts])
