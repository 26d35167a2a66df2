"""GPTQ: quantize the columns one by one, and compensate each column's error in the columns after it.

    columnⱼ -= Uᵢⱼ / Uᵢᵢ · (columnᵢ - roundedᵢ)   for j > i,   H⁻¹ = Uᵀ U

Frantar et al. 2022, https://arxiv.org/abs/2210.17323, Algorithm 1. Columns are quantized by falling activation energy
(static act-order). The grids of all groups are chosen first, from the original weights. Neither choice changes the
layout of the checkpoint.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from calibration.statistics import all_finite, strips
from compress.core import kernels
from compress.core.errors import BadValueError
from compress.core.gpu_kernels import triton_kernels
from compress.core.grid import QuantizedWeight, Scheme, find_grid

BLOCK_SIZE = 64  # columns between two updates of all later columns; the fastest of 8..128 on two CPU cores
GPU_BLOCK_SIZE = 128  # on a GPU, the update of all later columns costs more than the columns of the block
COPIED_ROWS = 256  # rows per step, so that no second matrix is needed
COPIED_NUMBERS = 2**20  # numbers per step, for the same reason
INVERTED_COLUMNS = 128  # columns per step
MAX_DAMP = 1.0


@dataclass(frozen=True)
class Factor:
    """The factor U of the inverse of the damped Hessian, H⁻¹ = Uᵀ U, and the damping that was needed.

    `upper` is U, (in, in) float32. Its inputs are sorted: `order` (in,) has their original indices.
    """

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
    block_size: int | None = None,
) -> tuple[QuantizedWeight, float]:
    """Quantize `weight` (out, in). Returns the quantized weight, and the damping that the Hessian needed.

    `hessian` is the mean of x xᵀ over calibration tokens, (in, in) float32. A caller that already has its
    `inverse_factor` passes it as `factor`. `block_size` changes the speed, never the result.
    Raises ValueError if no damping makes the Hessian positive definite.
    """
    weight = weight.float()
    scales, zeros = find_grid(weight, scheme, hessian.diagonal())
    factor = factor or inverse_factor(hessian, damp_percent)
    columns, groups = weight.T[factor.order], factor.order // scheme.group_size
    block_size = block_size or (GPU_BLOCK_SIZE if weight.is_cuda else BLOCK_SIZE)
    ordered = round_columns(columns, scales.T, zeros.T, groups, factor.upper, scheme.max_code, block_size)
    codes = ordered[torch.argsort(factor.order)].T.contiguous()
    return QuantizedWeight(codes, scales, zeros, scheme.bits, scheme.sym), factor.damp_percent


def round_columns(
    columns: Tensor, scales: Tensor, zeros: Tensor, groups: Tensor, upper: Tensor, max_code: int, block_size: int
) -> Tensor:
    """The codes (in, out) uint8 of `columns` (in, out). `columns` is overwritten.

    Matrices are transposed against the paper, so that a column is contiguous in memory. `scales` and `zeros` are
    (groups, out). `groups` (in,) is the group of each column.
    """
    codes = torch.empty_like(columns, dtype=torch.uint8)
    compiled = kernels if columns.device.type == "cpu" else triton_kernels()
    round_one = compiled.round_block if compiled else round_block
    for start in range(0, len(columns), block_size):
        block = slice(start, min(start + block_size, len(columns)))
        group = groups[block]
        rows = upper[block] / upper.diagonal()[block, None]
        offsets, errors = round_one(columns[block], scales[group], zeros[group], rows[:, block], max_code)
        codes[block] = offsets.add_(zeros[group])
        columns[block.stop :].addmm_(rows[:, block.stop :].T, errors, alpha=-1)
    return codes


def round_block(columns: Tensor, scales: Tensor, zeros: Tensor, rows: Tensor, max_code: int) -> tuple[Tensor, Tensor]:
    """Round the columns of a block one after another. Returns codes minus zeros, and the errors, both (block, out).

    `columns`, `scales` and `zeros` are (block, out). `rows` (block, block) is U with each row divided by its diagonal
    number. A column takes five operations. Where they can run, `kernels.round_block` (on a CPU) or
    `triton_kernels.round_block` (on a GPU) is used instead.
    """
    steps, lowest, highest = scales.reciprocal(), -zeros, max_code - zeros
    offsets, errors = torch.empty_like(columns), torch.empty_like(columns)
    for i, (column, step, scale) in enumerate(zip(columns, steps, scales, strict=True)):
        offset = torch.mul(column, step, out=offsets[i]).round_().clamp_(lowest[i], highest[i])
        error = torch.addcmul(column, offset, scale, value=-1, out=errors[i])
        columns[i + 1 :].addr_(rows[i, i + 1 :], error, alpha=-1)
    return offsets, errors


def inverse_factor(hessian: Tensor, damp_percent: float) -> Factor:
    """The Cholesky factor of the inverse of the damped Hessian. Damping grows tenfold until the factor exists.

    A dead input gets the mean energy. This value changes nothing: weights of dead inputs are rounded to nearest.
    Raises ValueError if the Hessian has NaN or Inf, or has no factor even with MAX_DAMP.
    """
    if not all_finite(hessian):
        raise BadValueError(f"the hessian {tuple(hessian.shape)} has NaN or infinite values")
    order = torch.argsort(hessian.diagonal(), descending=True, stable=True)
    for damp in damping(damp_percent):
        upper = factor_in_place(damped(hessian, order, damp))
        if upper is not None:
            return Factor(upper, order, damp)
    raise BadValueError(
        f"the hessian {tuple(hessian.shape)} has no Cholesky factor, even with a damp_percent of {MAX_DAMP}"
    )


def damping(least: float) -> Iterator[float]:
    """The dampings to try: first `least`, then ten times more each time. The last one is MAX_DAMP."""
    while least < MAX_DAMP:
        yield least
        least *= 10
    yield MAX_DAMP


def damped(hessian: Tensor, order: Tensor, damp: float) -> Tensor:
    """A damped copy of the Hessian, with inputs in `order`. `damp` times the mean diagonal is added to the diagonal."""
    ordered = hessian[order]
    for rows in ordered.split(COPIED_ROWS):
        rows.copy_(rows[:, order])
    diagonal = ordered.diagonal()
    mean = hessian.diagonal().mean().item() or 1.0
    diagonal[diagonal == 0] = mean
    diagonal.add_(damp * mean)
    return ordered


def factor_in_place(matrix: Tensor) -> Tensor | None:
    """The upper triangular U with matrix⁻¹ = Uᵀ U, in the memory of the symmetric `matrix`.

    None if the matrix is not positive definite in float32. The matrix with rows and columns reversed is L Lᵀ, and U is
    the reverse of L⁻¹. This takes half the arithmetic of inverting the matrix and factoring the inverse. A matrix for
    18944 inputs takes 1.4 GB, so every step works in place, in LAPACK's memory layout.
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
    """Reverse the order of rows and columns in place, by swapping the first number with the last, and so on."""
    numbers = matrix.view(-1)
    size, half = len(numbers), len(numbers) // 2
    for start in range(0, half, COPIED_NUMBERS):
        end = min(start + COPIED_NUMBERS, half)
        front = numbers[start:end].flip(0)
        numbers[start:end] = numbers[size - end : size - start].flip(0)
        numbers[size - end : size - start] = front


def invert_upper(matrix: Tensor) -> None:
    """Invert an upper triangular matrix in place, from left to right, INVERTED_COLUMNS per step.

    A step inverts C, when A is already inverted: [[A, B], [0, C]]⁻¹ = [[A⁻¹, -A⁻¹ B C⁻¹], [0, C⁻¹]]. The product with
    A⁻¹ is computed strip by strip, which skips most zeros of A⁻¹.
    """
    for start in range(0, len(matrix), INVERTED_COLUMNS):
        columns = slice(start, min(start + INVERTED_COLUMNS, len(matrix)))
        corner = matrix[columns, columns]
        inverse = torch.linalg.solve_triangular(corner, torch.eye(len(corner), device=matrix.device), upper=True)
        above = (matrix[:start, columns] @ inverse).neg_()
        for rows in strips(start, INVERTED_COLUMNS):
            matrix[rows, columns] = matrix[rows, rows.start : start] @ above[rows.start :]
        corner.copy_(inverse)
