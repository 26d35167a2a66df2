"""Round and pack the head and the embedding in slices of rows, one float32 slice at a time.

They are often the largest matrices of a small model. A 4-bit head gets the grid with the least squared error. 8-bit
heads and embeddings are plainly rounded, because 8-bit errors are small.
"""

from typing import Any

import torch
from torch import Tensor

from compress.checkpoint.formats import Format
from compress.core.grid import QuantizedWeight, Scheme, find_grid
from compress.quantize.methods.parallel_rows import solve_in_parallel
from compress.quantize.methods.rtn import round_to_grid, rtn

ROWS = 4096  # rows per slice, a multiple of 8, because the zeros of 8 rows share a word
ALONG_ROWS = {"qweight": 1, "qzeros": 1, "scales": 1, "weight_packed": 0, "weight_scale": 0, "weight_zero_point": 0}


def pack_table(weight: Tensor, row: Format, scheme: Scheme) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The packed tensors of a (rows, width) weight by suffix, and its report row.

    The row has the bits, the error, and the error of plain rounding, both ‖ΔW‖² / ‖W‖². The slice size changes the
    memory, never the result.
    """
    slices, total, errors = [], 0.0, {"error": 0.0, "rtn_error": 0.0}
    for part in weight.split(ROWS):
        source = part.float()
        rounded, plain = round_table(source, scheme), rtn(source, scheme)
        slices.append(row.save(rounded, scheme.dtype.torch))
        total += source.square().sum().item()
        errors["error"] += (rounded.dequantize() - source).square().sum().item()
        errors["rtn_error"] += (plain.dequantize() - source).square().sum().item()
    whole = {spec.name: join(slices, spec.name) for spec in row.specs(weight.shape[0], weight.shape[1], scheme)}
    if "weight_shape" in whole:
        whole["weight_shape"] = torch.tensor(weight.shape, dtype=torch.int64)
    return whole, {"bits": scheme.bits, **{key: error / (total or 1.0) for key, error in errors.items()}}


def join(slices: list[dict[str, Tensor]], suffix: str) -> Tensor:
    """Join the slices of one tensor along its rows. A tensor without a row axis is the same in every slice."""
    if suffix not in ALONG_ROWS:
        return slices[0][suffix]
    return torch.cat([parts.pop(suffix) for parts in slices], ALONG_ROWS[suffix])


def round_table(weight: Tensor, scheme: Scheme) -> QuantizedWeight:
    """Round a float32 slice (rows, width): plainly to 8 bits, or to the 4-bit grid with the least squared error."""
    if scheme.bits == 8:
        return rtn(weight, scheme)
    equal_importance = torch.ones(weight.shape[1], device=weight.device)

    def solve(rows: slice) -> QuantizedWeight:
        scales, zeros = find_grid(weight[rows], scheme, equal_importance)
        return round_to_grid(weight[rows], scales, zeros, scheme)

    return solve_in_parallel(solve, weight)
