"""Fold AWQ's scales into the feeder. The feeder is the module whose output the scaled linears read.

    (feeder(x) / scale) (W · scale)ᵀ = feeder(x) Wᵀ

So the checkpoint computes the same function and does not store AWQ's scales. The feeder is a norm or rows of a linear.
If the linear is already quantized, its codes stay, and only the quantization scales of these rows are divided.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from compress.core.grid import QuantizedWeight, away_from_zero
from compress.model.families import Feeder


def fold_norm(weight: Tensor, scale: Tensor, offset: float) -> Tensor:
    """The weight (hidden,) that makes a norm divide its output by `scale`. The norm multiplies by weight + `offset`."""
    return (weight.float() + offset) / scale - offset


def per_row(scale: Tensor, feeder: Feeder, query_heads_per_kv_head: int, head_dim: int) -> Tensor:
    """Reduce `scale` (in,) to one scale per row of the feeder, (rows,).

    A value head feeds several query heads. These heads have equal scales, so the scales of the first head are taken.
    """
    if feeder.kind != "heads" or query_heads_per_kv_head == 1:
        return scale
    return scale.view(-1, query_heads_per_kv_head, head_dim)[:, 0].reshape(-1)


def fold_rows(weight: QuantizedWeight, divisor: Tensor, dtype: torch.dtype) -> QuantizedWeight:
    """The quantized weight, with its last len(divisor) rows divided by `divisor`.

    Codes and zeros do not change. Scales are divided and rounded to `dtype` again.
    """
    scales = weight.scales.clone()
    scales[-len(divisor) :] /= divisor[:, None]
    return replace(weight, scales=away_from_zero(scales).to(dtype).float())


def fold_bias(linear: nn.Linear, divisor: Tensor) -> Tensor | None:
    """The bias (out,) of `linear`, with its last len(divisor) numbers divided by `divisor`. None without a bias."""
    if linear.bias is None:
        return None
    bias = linear.bias.detach().clone()
    bias[-len(divisor) :] /= divisor
    return bias
