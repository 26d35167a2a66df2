"""Fold AWQ's scales into what feeds the linears, so that the checkpoint computes the same function without them.

A linear fed by a norm, or by the rows of another linear, sees its input divided by `scale` when the feeder's weight is.
A feeder that is already quantized keeps its codes: dividing a row divides the row's scales.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from compress.core.grid import QuantizedWeight, away_from_zero
from compress.model.families import Feeder


def fold_norm(weight: Tensor, scale: Tensor, offset: float) -> Tensor:
    """A norm's weight (hidden,) divided by `scale`; `offset` is what the norm itself adds to its weight."""
    return (weight.float() + offset) / scale - offset


def per_row(scale: Tensor, feeder: Feeder, query_heads_per_kv_head: int, head_dim: int) -> Tensor:
    """One scale per row of the feeder: query heads with the same value head give one. (in,) -> (rows,)."""
    if feeder.kind != "heads" or query_heads_per_kv_head == 1:
        return scale
    return scale.view(-1, query_heads_per_kv_head, head_dim)[:, 0].reshape(-1)


def fold_rows(weight: QuantizedWeight, divisor: Tensor, dtype: torch.dtype) -> QuantizedWeight:
    """The last len(divisor) rows of a quantized weight divided: scales change, codes and zeros stay.

    Scales are rounded to `dtype` again, as the disk will hold them.
    """
    scales = weight.scales.clone()
    scales[-len(divisor) :] /= divisor[:, None]
    return replace(weight, scales=away_from_zero(scales).to(dtype).float())


def fold_bias(linear: nn.Linear, divisor: Tensor) -> Tensor | None:
    """The linear's bias (out,) with its last rows divided, None when it has none."""
    if linear.bias is None:
        return None
    bias = linear.bias.detach().clone()
    bias[-len(divisor) :] /= divisor
    return bias
