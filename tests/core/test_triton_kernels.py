"""The Triton kernels against the torch loops: compiled on a GPU with `-m gpu`, else in Triton's interpreter on a CPU.

Needs Triton. On a machine without a GPU, `pip install triton` is enough.
"""

import os
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from compress.core.grid import Scheme, find_grid, quantize
from compress.quantize.methods import gptq, refine

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = [
    pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed"),
    pytest.mark.skipif(not (INTERPRETED or torch.cuda.is_available()), reason="torch finds no GPU"),
    pytest.mark.gpu,
]
DEVICE = "cpu" if INTERPRETED else "cuda"

SHAPES = [(32, 19), (24, 70), (5, 3), (1, 1)]  # columns, outputs; the interpreter is slow
KINDS = ["plain", "symmetric", "equal columns", "dead inputs"]


@pytest.fixture
def kernels():
    from compress.core import triton_kernels

    return triton_kernels


def problem(shape: tuple[int, int], kind: str) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    """Columns (in, out), scales and zeros (out,), a Hessian (in, in), and the highest code."""
    size, out = shape
    generator = torch.Generator().manual_seed(31 * size + out + KINDS.index(kind))
    x = torch.randn(4 * size, size, generator=generator) * (1 + torch.rand(size, generator=generator))
    columns = torch.randn(size, out, generator=generator)
    if kind == "equal columns":
        x, columns = x[:, :1].expand(-1, size) + 0.01 * x, columns[:1].expand(size, -1).clone()
    if kind == "dead inputs":
        x[:, ::3] = 0
    scheme = Scheme(group_size=size, sym=kind == "symmetric")
    scales, zeros = find_grid(columns.T.contiguous(), scheme, torch.ones(size))
    tensors = columns, scales[:, 0].contiguous(), zeros[:, 0].contiguous(), x.T @ x / len(x)
    return *(tensor.to(DEVICE) for tensor in tensors), scheme.max_code


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_rounding_kernel_chooses_the_codes_of_the_torch_loop(kernels, shape, kind):
    columns, scales, zeros, hessian, max_code = problem(shape, kind)
    upper = gptq.inverse_factor(hessian, 0.01).upper
    rows = upper / upper.diagonal()[:, None]
    grids = [part.expand_as(columns).contiguous() for part in (scales, zeros)]
    expected = gptq.round_block(columns.clone(), *grids, rows, max_code)
    offsets, errors = kernels.round_block(columns.clone(), *grids, rows, max_code)
    assert torch.equal(offsets, expected[0])
    assert torch.allclose(errors, expected[1], atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_refining_kernel_chooses_the_codes_of_the_torch_loop(kernels, shape, kind, dtype):
    columns, scales, zeros, hessian, max_code = problem(shape, kind)
    scales = scales.to(dtype).float()
    codes = quantize(columns, scales, zeros, 4).to(torch.uint8)
    results = []
    for move in (refine.move_group, kernels.move_group):
        mine, moved, error = codes.clone(), scales.clone(), (codes - zeros) * scales - columns
        energy = hessian.diagonal().clamp(min=1e-30)
        for _ in range(2):
            move(mine, error, moved, hessian @ error, hessian, energy, zeros, max_code, dtype)
        results.append((mine, moved, error))
    (codes, scales, error), (ours, moved, off) = results
    assert torch.equal(ours, codes)
    assert torch.allclose(moved, scales, rtol=2 * torch.finfo(dtype).eps)
    assert torch.allclose(off, error, atol=0.1)
    assert torch.allclose(off, (ours - zeros) * moved - columns, atol=1e-4)
