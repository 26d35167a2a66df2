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


def gptq_load(read: Callable[[str], Tensor], scheme: Scheme, offset: int = 1) -> QuantizedWeight:
    codes = pack.unpack_gptq_codes(read("qweight"), scheme.bits)
    zeros = pack.unpack_gptq_zeros(read("qzeros"), scheme.bits, offset)
    return QuantizedWeight(codes, read("scales").T.float().contiguous(), zeros.float(), scheme.bits, sym=True)


def gptq_v2_load(read: Callable[[str], Tensor], scheme: Scheme) -> QuantizedWeight:
    return gptq_load(read, scheme, offset=0)


def column_order(g_idx: Tensor, weight: QuantizedWeight) -> Tensor | None:
    """The group of each column (in,) from a stored g_idx, or None if the columns of each group lie together, in order.

    Raises ValueError if it does not fit the weight.
    """
    columns, groups = weight.codes.shape[1], weight.scales.shape[1]
    order = g_idx.long()
    if order.shape != (columns,) or not 0 <= int(order.min()) <= int(order.max()) < groups:
        raise ValueError(f"g_idx {tuple(order.shape)} does not give {columns} columns one of {groups} groups each")
    return None if torch.equal(order, torch.arange(columns) // weight.group_size) else order


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
    "gptq_v2": Packing(gptq_save, gptq_v2_load),  # read only: nothing writes it
    "compressed-tensors": Packing(ct_save, ct_load),
}
