"""Codes and scales as ggml blocks of 32 weights, without changing a weight.

    grid               ggml type  stored weight   bits per weight
    4 bits, symmetric  Q4_0       (q - 8) · d      4.5
    4 bits, with zeros Q5_0       (u - 16) · d     5.5   u = q - zero + 16, which fits in 5 bits
    8 bits, symmetric  Q8_0       q · d            8.5

A group of 64 or 128 weights becomes two or four blocks with the same scale d. The block layouts:
https://github.com/ggml-org/llama.cpp/blob/master/ggml/src/ggml-common.h
"""

import numpy as np
import torch
from torch import Tensor

from compress.core.errors import BadValueError
from compress.core.grid import QuantizedWeight
from compress.core.pack import GGML_BLOCK, pack_ggml_high_bits, pack_ggml_nibbles

BYTES = {"Q4_0": 18, "Q5_0": 22, "Q8_0": 34}  # of one block of 32 weights
TYPES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}  # dtype of a stored tensor -> ggml type


def block_type(weight: QuantizedWeight) -> str:
    """The ggml type that stores a weight exactly. Raises ValueError, with the reason, if there is none."""
    symmetric = weight.has_middle_zeros
    if weight.group_size % GGML_BLOCK:
        raise BadValueError(f"groups of {weight.group_size} weights are not whole blocks of {GGML_BLOCK}")
    if not torch.equal(weight.scales.half().float(), weight.scales):
        raise BadValueError("a scale is not a float16 number, and ggml stores scales in float16")
    if weight.bits == 8 and not symmetric:
        raise BadValueError("no ggml type holds 8 bits with zero points; quantize with a symmetric grid")
    return "Q8_0" if weight.bits == 8 else "Q4_0" if symmetric else "Q5_0"


def encode(weight: QuantizedWeight, name: str) -> np.ndarray:
    """The bytes of a weight in the ggml type `name`, as uint8 (out, blocks · bytes per block)."""
    scales = weight.scales.repeat_interleave(weight.group_size // GGML_BLOCK, dim=1).half()
    parts = [scales[..., None].view(torch.uint8), *ENCODERS[name](weight)]
    return torch.cat(parts, dim=-1).flatten(1).contiguous().numpy()


def q4_0(weight: QuantizedWeight) -> list[Tensor]:
    return [pack_ggml_nibbles(weight.codes)]


def q5_0(weight: QuantizedWeight) -> list[Tensor]:
    zeros = weight.zeros.repeat_interleave(weight.group_size, dim=1)
    codes = (weight.codes.float() - zeros + 16).to(torch.uint8)
    return [pack_ggml_high_bits(codes), pack_ggml_nibbles(codes % 16)]


def q8_0(weight: QuantizedWeight) -> list[Tensor]:
    codes = (weight.codes.to(torch.int16) - 128).to(torch.int8)
    return [codes.unflatten(1, (-1, GGML_BLOCK)).view(torch.uint8)]


ENCODERS = {"Q4_0": q4_0, "Q5_0": q5_0, "Q8_0": q8_0}


def plain_bytes(tensor: Tensor) -> np.ndarray:
    """The bytes of an unquantized tensor, as uint8 (rows, bytes per row)."""
    rows = tensor.reshape(-1, tensor.shape[-1]).contiguous()
    return rows.view(torch.uint8).numpy()
