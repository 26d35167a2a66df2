import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from compress.core.pack import pack_words
from compress.runtimes import cpu_kernel
from compress.runtimes.cpu_kernel import gemm, gemm_in_c, gemm_in_torch

pytestmark = pytest.mark.slow  # runs whole jobs

needs_kernel = pytest.mark.skipif(
    bool(cpu_kernel.uncompiled_reason(torch.float16)), reason="needs a C compiler and a CPU with AVX2"
)
DTYPES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])


def vllm_blocks(codes):
    """codes (N, K) as the words that vLLM passes to the operator, (N / 16, 2 K) int32."""
    inputs = codes.shape[1]
    return pack_words(codes.T, 4, 1).view(inputs, -1, 2).permute(1, 0, 2).reshape(-1, inputs * 2).contiguous()


def make_linear(inputs, outputs, group_size, dtype, *, zeros=True, bias=True):
    """A random 4-bit linear: the operator's arguments, and its weight as (N, K) float64."""
    g = torch.Generator().manual_seed(inputs + outputs)
    groups = inputs // group_size
    codes = torch.randint(0, 16, (outputs, inputs), generator=g, dtype=torch.uint8)
    zero_codes = torch.randint(0, 16, (groups, outputs), generator=g, dtype=torch.uint8)
    if not zeros:
        zero_codes.fill_(8)
    scales = (torch.rand(groups, outputs, generator=g) / 16 + 0.01).to(dtype)
    weight = (codes.T.double().unflatten(0, (groups, -1)) - zero_codes[:, None]) * scales[:, None].double()
    return SimpleNamespace(
        q_weight=vllm_blocks(codes),
        scales=scales,
        zeros=pack_words(zero_codes, 4, 1) if zeros else None,
        bias=torch.randn(outputs, generator=g).to(dtype) if bias else None,
        weight=weight.flatten(0, 1).T,
    )


def run(x, linear, kernel=gemm_in_c):
    output = torch.full((len(x), linear.scales.shape[1]), torch.nan, dtype=x.dtype)
    kernel(x, linear.q_weight, output, linear.scales, linear.zeros, linear.bias)
    return output


def assert_rounded(result, x, linear):
    """Check that every value is exact up to one rounding to its dtype and the error of float32 sums."""
    bias = 0 if linear.bias is None else linear.bias.double()
    exact = x.double() @ linear.weight.T + bias
    terms = x.double().abs() @ linear.weight.abs().T + abs(bias)
    # (code - 8) x is summed as code x - 8 x: up to eight times the size of its terms
    limit = exact.abs() * torch.finfo(x.dtype).eps / 2 + terms * 8 * torch.finfo(torch.float32).eps
    assert ((result.double() - exact).abs() <= limit).all()


def in_new_python(code):
    command = [sys.executable, "-c", code]
    process = subprocess.run(command, capture_output=True, text=True)
    assert not process.returncode, process.stderr


SHAPES = [(1, 64, 32, 32), (1, 96, 32, 6), (2, 192, 48, 64), (3, 128, 96, 128), (4, 64, 16, 64), (7, 96, 32, 2)]
SHAPES += [(21, 256, 64, 64)]


@needs_kernel
@DTYPES
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("zeros", [True, False], ids=["zeros", "no zeros"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_compiled_kernel_is_exact_up_to_one_rounding(shape, zeros, bias, dtype):
    tokens, inputs, outputs, group_size = shape
    linear = make_linear(inputs, outputs, group_size, dtype, zeros=zeros, bias=bias)
    x = torch.randn(tokens, inputs, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert_rounded(run(x, linear), x, linear)
    assert_rounded(gemm_in_torch(x, linear.q_weight, linear.scales, linear.zeros, linear.bias), x, linear)


@needs_kernel
@DTYPES
def test_a_one_hot_input_returns_a_weight_column_bit_for_bit(dtype):
    linear = make_linear(64, 32, 32, dtype, bias=False)
    assert torch.equal(run(torch.eye(64, dtype=dtype), linear), linear.weight.T.to(dtype))


@needs_kernel
def test_the_number_of_threads_never_changes_the_result():
    linear = make_linear(64, 96, 32, torch.float16)
    x = torch.randn(40, 64, dtype=torch.float16)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = run(x, linear)
        torch.set_num_threads(3)
        assert torch.equal(run(x, linear), alone)
    finally:
        torch.set_num_threads(before)


@needs_kernel
@DTYPES
def test_a_slice_of_a_wider_tensor_gives_the_same_result(dtype):
    linear = make_linear(64, 32, 32, dtype)
    wide = torch.randn(5, 200).to(dtype)
    assert torch.equal(run(wide[:, 7:71], linear), run(wide[:, 7:71].contiguous(), linear))


@needs_kernel
@DTYPES
def test_a_nan_stays_a_nan(dtype):
    x = torch.zeros(2, 64, dtype=dtype)
    x[0, 3] = torch.nan
    result = run(x, make_linear(64, 32, 32, dtype))
    assert result[0].isnan().all()
    assert result[1].isfinite().all()


@needs_kernel
def test_a_float16_overflow_becomes_infinite():
    linear = make_linear(64, 32, 32, torch.float16, bias=False)
    linear.scales.fill_(2)
    x = torch.zeros(1, 64, dtype=torch.float16)
    x[0, 3] = 60000
    result = run(x, linear)[0]
    expected = 60000 * 2 * (linear.weight[:, 3] / linear.weight[:, 3].abs()).nan_to_num()
    assert torch.equal(result, expected.to(torch.float16))


@needs_kernel
def test_the_kernel_loads_no_second_openmp_library():
    in_new_python(
        """
import re, torch
from pathlib import Path
from compress.runtimes.cpu_kernel import compiled

def runtimes():
    return set(re.findall(r"/\\S*lib(?:gomp|iomp|omp)\\S*", Path("/proc/self/maps").read_text()))

before = runtimes()
compiled()
assert before and runtimes() == before, runtimes()
"""
    )


@needs_kernel
@pytest.mark.parametrize(
    "change",
    [
        {"q_weight": torch.zeros(2, 64, dtype=torch.int32)},
        {"scales": torch.ones(3, 32, dtype=torch.float16)},
        {"scales": torch.ones(2, 32, dtype=torch.bfloat16)},
        {"zeros": torch.zeros(1, 4, dtype=torch.int32)},
        {"bias": torch.zeros(16, dtype=torch.float16)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_tensors_with_mismatched_shapes_are_rejected(change):
    linear = make_linear(64, 32, 32, torch.float16)
    vars(linear).update(change)
    output = torch.empty(1, 32, dtype=torch.float16)
    with pytest.raises(ValueError, match="cpu_gemm_wna16"):
        gemm_in_c(torch.ones(1, 64).half(), linear.q_weight, output, linear.scales, linear.zeros, linear.bias)


@pytest.fixture
def cold_caches(monkeypatch):
    """Forget what was compiled, before and after, and compile quickly in between."""
    monkeypatch.setattr(cpu_kernel, "FLAGS", (*cpu_kernel.FLAGS, "-O0"))
    caches = (cpu_kernel.compiled, cpu_kernel.uncompiled_reason, cpu_kernel.warn_once)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


def run_operator(x, linear):
    return run(x, linear, lambda *operands: gemm(*operands, 8, "vec"))


def test_without_a_compiler_torch_computes_and_warns_once(monkeypatch, tmp_path, caplog, cold_caches):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", "no-such-compiler")
    linear = make_linear(64, 32, 32, torch.float16)
    x = torch.randn(3, 64).half()
    result = run_operator(x, linear)
    assert torch.equal(run_operator(x, linear), result)
    assert_rounded(result, x, linear)
    assert len(caplog.records) == 1
    assert "plain torch" in caplog.text


def test_the_warning_holds_the_compilers_error(monkeypatch, tmp_path, caplog, cold_caches):
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\necho 'wna16.c:10: error: no immintrin.h' >&2\necho stopped. >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", str(compiler))
    run_operator(torch.ones(1, 64).half(), make_linear(64, 32, 32, torch.float16))
    assert "error: no immintrin.h" in caplog.text
    assert list((tmp_path / "qcompress").iterdir()) == []


def test_float32_activations_use_torch_with_a_warning(caplog, cold_caches):
    linear = make_linear(64, 32, 32, torch.float32)
    x = torch.randn(3, 64)
    assert_rounded(run_operator(x, linear), x, linear)
    assert "torch.float32" in caplog.text


@needs_kernel
def test_the_library_is_compiled_once(monkeypatch, tmp_path, cold_caches):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cpu_kernel.compiled()
    monkeypatch.setattr(subprocess, "run", None)
    library = cpu_kernel.compile_kernel(tmp_path / "qcompress")
    assert list((tmp_path / "qcompress").iterdir()) == [library]


@needs_kernel
def test_the_librarys_name_depends_on_the_compiler_flags(monkeypatch, tmp_path, cold_caches):
    first = cpu_kernel.compile_kernel(tmp_path)
    monkeypatch.setattr(cpu_kernel, "FLAGS", (*cpu_kernel.FLAGS, "-DOTHER"))
    assert cpu_kernel.compile_kernel(tmp_path) != first


@needs_kernel
def test_a_read_only_home_still_gets_the_compiled_kernel(monkeypatch, tmp_path, cold_caches):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    linear = make_linear(64, 32, 32, torch.float16)
    x = torch.randn(3, 64).half()
    assert cpu_kernel.cache_folder() is None
    assert_rounded(run_operator(x, linear), x, linear)


def test_importing_the_plugin_loads_neither_torch_nor_vllm():
    in_new_python("import sys, compress.runtimes.cpu_kernel; assert not {'torch', 'vllm'} & set(sys.modules)")


def test_without_vllm_the_plugin_does_nothing(monkeypatch):
    monkeypatch.setattr(cpu_kernel, "find_spec", lambda name: None)
    cpu_kernel.register()
    assert not cpu_kernel._libraries


def test_on_a_gpu_the_plugin_does_nothing(monkeypatch):
    monkeypatch.setattr(cpu_kernel, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace())
    platforms = SimpleNamespace(current_platform=SimpleNamespace(is_cpu=lambda: False))
    monkeypatch.setitem(sys.modules, "vllm.platforms", platforms)
    cpu_kernel.register()
    assert not cpu_kernel._libraries


@pytest.mark.vllm
def test_vllm_passes_the_layout_that_the_operator_reads():
    """vLLM's kernel class lays out a linear stored as GPTQ, calls the operator, and gets x Wᵀ."""
    pytest.importorskip("vllm")
    in_new_python(
        """
import torch
from types import SimpleNamespace
from compress.core.pack import pack_gptq_codes
from compress.runtimes.cpu_kernel import register

register()
register()
from vllm.model_executor.kernels.linear.mixed_precision.cpu import CPUWNA16LinearKernel
from vllm.scalar_type import scalar_types

codes = torch.randint(0, 16, (64, 96), dtype=torch.uint8)
layer = torch.nn.Module()
layer.qweight = torch.nn.Parameter(pack_gptq_codes(codes), requires_grad=False)
layer.scales = torch.nn.Parameter(torch.rand(3, 64).half(), requires_grad=False)
kernel = object.__new__(CPUWNA16LinearKernel)
kernel.config = SimpleNamespace(weight_type=scalar_types.uint4b8, zero_points=False)
kernel.w_q_name, kernel.w_s_name, kernel.w_zp_name, kernel.w_gidx_name = "qweight", "scales", None, None
layer.use_w4a8 = False
kernel._process_gptq_weights_w4a16(layer)
x = torch.randn(3, 96).half()
weight = ((codes.float() - 8) * layer.scales.T.float().repeat_interleave(32, 1)).half().float()  # as GPUs round it
torch.testing.assert_close(kernel.apply_weights(layer, x), (x.float() @ weight.T).half(), rtol=2e-3, atol=2e-3)
"""
    )
