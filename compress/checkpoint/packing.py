"""Pack a quantized weight into the tensors of each on-disk format, and read it back from these tensors.

`formats.py` has the names, dtypes and shapes of these tensors; `core/pack.py` packs the bits.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.core import pack
from compress.core.grid import QuantizedWeight
from compress.core.scheme import Scheme

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Packing:
    """How a format packs a weight: `save` returns tensors by suffix, with scales in a dtype. `load` is its inverse."""

    save: Callable[[QuantizedWeight, torch.dtype], Tensors]
    load: Callable[[Callable[[str], Tensor], Scheme], QuantizedWeight]


def awq_save(weight: QuantizedWeight, dtype: torch.dtype) -> Tensors:
    return {
        "qweight": pack.pack_awq(weight.codes),
        "qzeros": pack.pack_awq(weight.zeros),
        "scales": weight.scales.T.to(dtype).contiguous(),
    }


def awq_load(read: Callable[[str], Tensor], scheme: Scheme) -> QuantizedWeight:
    codes, zeros = pack.unpack_awq(read("qweight")), pack.unpack_awq(read("qzeros"))
    return QuantizedWeight(codes, read("scales").T.float().contiguous(), zeros.float(), scheme.bits, sym=False)


def gptq_save(weight: QuantizedWeight, dtype: torch.dtype) -> Tensors:
    columns = torch.arange(weight.codes.shape[1], dtype=torch.int32)
    return {
        "qweight": pack.pack_gptq_codes(weight.codes, weight.bits),
        "qzeros": pack.pack_gptq_zeros(weight.zeros, weight.bits),
        "scales": weight.scales.T.to(dtype).contiguous(),
        "g_idx": columns // weight.group_size,
    }


def gptq_load(read: Callable[[str], Tensor], scheme: Scheme) -> QuantizedWeight:
    codes = pack.unpack_gptq_codes(read("qweight"), scheme.bits)
    zeros = pack.unpack_gptq_zeros(read("qzeros"), scheme.bits)
    return QuantizedWeight(codes, read("scales").T.float().contiguous(), zeros.float(), scheme.bits, sym=True)


def ct_save(weight: QuantizedWeight, dtype: torch.dtype) -> Tensors:
    tensors = {
        "weight_packed": pack.pack_ct_codes(weight.codes, weight.bits),
        "weight_scale": weight.scales.to(dtype).contiguous(),
        "weight_shape": torch.tensor(weight.codes.shape, dtype=torch.int64),
    }
    return tensors if weight.sym else {**tensors, "weight_zero_point": pack.pack_ct_zeros(weight.zeros, weight.bits)}


def ct_load(read: Callable[[str], Tensor], scheme: Scheme) -> QuantizedWeight:
    codes, scales = pack.unpack_ct_codes(read("weight_packed"), scheme.bits), read("weight_scale").float()
    if scheme.sym:
        zeros = torch.full_like(scales, 2 ** (scheme.bits - 1))
    else:
        zeros = pack.unpack_ct_zeros(read("weight_zero_point"), scheme.bits).float()
    return QuantizedWeight(codes, scales, zeros, scheme.bits, sym=scheme.sym)


PACKINGS = {
    "awq": Packing(awq_save, awq_load),
    "gptq": Packing(gptq_save, gptq_load),
    "compressed-tensors": Packing(ct_save, ct_load),
}
