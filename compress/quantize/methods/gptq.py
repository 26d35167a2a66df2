"""GPTQ: quantize columns one by one, moving each column's error onto the columns to come.

Frantar et al. 2022, https://arxiv.org/abs/2210.17323, Algorithm 1, with two choices that leave the checkpoint's layout
alone: columns go in order of falling activation energy (static act-order), and every group's grid is fixed beforehand
on the original weights, by the error that its inputs make of it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from calibration.statistics import all_finite, strips
from compress.core import kernels
from compress.core.grid import QuantizedWeight, Scheme, find_grid

BLOCK_SIZE = 64  # columns between two updates of the far ones; the fastest of 8..128 on two CPU cores
COPIED_ROWS = 256  # at a time, so that no second matrix is needed
COPIED_NUMBERS = 2**20  # likewise
INVERTED_COLUMNS = 128
MAX_DAMP = 1.0


@dataclass(frozen=True)
class Factor:
    """upper: (in, in) float32 U with H⁻¹ = Uᵀ U in the order of `order` (in,); damp_percent that it took."""

    upper: Tensor
    order: Tensor
    damp_percent: float


def gptq(
    weight: Tensor,
    hessian: Tensor,
    scheme: Scheme,
    *,
    damp_percent: float = 0.01,
    factor: Factor | None = None,
    block_size: int = BLOCK_SIZE,
) -> tuple[QuantizedWeight, float]:
    """The quantized `weight` (out, in) and the damping that was needed.

    `hessian` is the mean of x xᵀ over calibration tokens, (in, in) float32, `factor` what its `inverse_factor` made,
    where the caller has it. `block_size` sets how often errors reach the far columns: it changes the speed, never the
    result. ValueError for a Hessian that no damping makes positive.
    """
    weight = weight.float()
    scales, zeros = find_grid(weight, scheme, hessian.diagonal())
    factor = factor or inverse_factor(hessian, damp_percent)
    codes = round_columns(
        weight.T[factor.order],
        scales.T,
        zeros.T,
        factor.order // scheme.group_size,
        factor.upper,
        max_code=scheme.max_code,
        block_size=block_size,
    )
    back = torch.empty_like(factor.order)
    back[factor.order] = torch.arange(len(back), device=back.device)
    codes = codes[back].T.contiguous()
    return QuantizedWeight(codes, scales, zeros, bits=scheme.bits, sym=scheme.sym), factor.damp_percent


def round_columns(
    columns: Tensor, scales: Tensor, zeros: Tensor, groups: Tensor, upper: Tensor, *, max_code: int, block_size: int
) -> Tensor:
    """Codes (in, out) uint8 of `columns` (in, out), which it uses up; scales, zeros (groups, out); groups (in,).

    Transposed against the paper, so that a column of the weight lies together in memory.
    """
    codes = torch.empty_like(columns, dtype=torch.uint8)
    round_own = kernels.round_block if columns.device.type == "cpu" else round_block
    for start in range(0, len(columns), block_size):
        block, own = slice(start, min(start + block_size, len(columns))), groups[start : start + block_size]
        rows = upper[block] / upper.diagonal()[block, None]  # an error is divided by its diagonal as it is handed on
        offsets, errors = round_own(columns[block], scales[own], zeros[own], rows[:, block], max_code)
        codes[block] = offsets.add_(zeros[own])
        columns[block.stop :].addmm_(rows[:, block.stop :].T, errors, alpha=-1)
    return codes


def round_block(columns: Tensor, scales: Tensor, zeros: Tensor, rows: Tensor, max_code: int) -> tuple[Tensor, Tensor]:
    """Codes less their zeros, and errors in the weight, of a block of columns; all (block, out), rows (block, block).

    Five operations a column; a CPU has `kernels.round_block` instead.
    """
    steps, lowest, highest = scales.reciprocal(), -zeros, max_code - zeros
    offsets, errors = torch.empty_like(columns), torch.empty_like(columns)
    for i, (column, scale) in enumerate(zip(columns, scales, strict=True)):
        offset = torch.mul(column, steps[i], out=offsets[i]).round_().clamp_(lowest[i], highest[i])
        error = torch.addcmul(column, offset, scale, value=-1, out=errors[i])
        columns[i + 1 :].addr_(rows[i, i + 1 :], error, alpha=-1)
    return offsets, errors


def inverse_factor(hessian: Tensor, damp_percent: float) -> Factor:
    """The Cholesky factor of the damped Hessian's inverse; damping grows tenfold until there is one.

    An input that never fires gets the mean energy: any positive value leaves its weights merely rounded.
    """
    if not all_finite(hessian):
        raise ValueError(f"the hessian {tuple(hessian.shape)} holds NaN or infinite values")
    order = torch.argsort(hessian.diagonal(), descending=True, stable=True)
    for damp in damping(damp_percent):
        upper = factor_in_place(damped(hessian, order, damp))
        if upper is not None:
            return Factor(upper, order, damp)
    raise ValueError(
        f"the hessian {tuple(hessian.shape)} has no Cholesky factor with any damp_percent up to {MAX_DAMP}"
    )


def damping(least: float) -> Iterator[float]:
    """`least`, then ten times as much and so on; the last is MAX_DAMP."""
    while least < MAX_DAMP:
        yield least
        least *= 10
    yield MAX_DAMP


def damped(hessian: Tensor, order: Tensor, damp: float) -> Tensor:
    """A copy of the Hessian in `order`, with `damp` times its mean diagonal on the diagonal."""
    ordered = hessian[order]
    for rows in ordered.split(COPIED_ROWS):
        rows.copy_(rows[:, order])
    diagonal = ordered.diagonal()
    mean = hessian.diagonal().mean().item() or 1.0
    diagonal[diagonal == 0] = mean
    diagonal.add_(damp * mean)
    return ordered


def factor_in_place(matrix: Tensor) -> Tensor | None:
    """Upper U with matrix⁻¹ = Uᵀ U, in the memory of the symmetric `matrix`; None when rounding leaves no such U.

    Written backwards the matrix is L Lᵀ, and U is L⁻¹ written backwards: half the arithmetic of factoring the inverse.
    For 18944 inputs one matrix is 1.4 GB, so all steps work in the same one, as LAPACK lays it out.
    """
    reverse(matrix)
    failed = torch.empty((), dtype=torch.int32, device=matrix.device)
    torch.linalg.cholesky_ex(matrix.T, out=(matrix.T, failed))
    if failed:
        return None
    invert_upper(matrix)
    reverse(matrix)
    return matrix.T if all_finite(matrix) else None


def reverse(matrix: Tensor) -> None:
    """Rows and columns in the opposite order, in place: all numbers from the last to the first."""
    numbers = matrix.view(-1)
    size, half = len(numbers), len(numbers) // 2
    for start in range(0, half, COPIED_NUMBERS):
        end = min(start + COPIED_NUMBERS, half)
        front = numbers[start:end].flip(0)
        numbers[start:end] = numbers[size - end : size - start].flip(0)
        numbers[size - end : size - start] = front


def invert_upper(matrix: Tensor) -> None:
    """The inverse of an upper triangular matrix in its place, INVERTED_COLUMNS at a time from the left.

    With A inverted, [[A, B], [0, C]]⁻¹ = [[A⁻¹, -A⁻¹ B C⁻¹], [0, C⁻¹]]. A⁻¹ is multiplied by strips of rows, which
    leave out most of the zeros.
    """
    for start in range(0, len(matrix), INVERTED_COLUMNS):
        own = slice(start, min(start + INVERTED_COLUMNS, len(matrix)))
        corner = matrix[own, own]
        inverse = torch.linalg.solve_triangular(corner, torch.eye(len(corner), device=matrix.device), upper=True)
        above = (matrix[:start, own] @ inverse).neg_()
        for rows in strips(start, INVERTED_COLUMNS):
            matrix[rows, own] = matrix[rows, rows.start : start] @ above[rows.start :]
        corner.copy_(inverse)
