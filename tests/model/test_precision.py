import greenlet
import pytest
import torch

from compress.model.precision import fastest_matmul_dtype, gpu_dtype, matmul_in, rough_dtype


@pytest.fixture
def factors():
    g = torch.Generator().manual_seed(0)
    return torch.randn(6, 32, generator=g), torch.randn(4, 32, generator=g)


def product(x, weight):
    return torch.nn.functional.linear(x, weight)


def test_products_are_rounded_only_while_the_context_is_open(factors):
    exact = product(*factors)
    with matmul_in(torch.bfloat16):
        rounded = product(*factors)
        with matmul_in(torch.float32):
            assert torch.equal(product(*factors), exact)
        assert torch.equal(product(*factors), rounded)
    assert rounded.dtype == torch.bfloat16 and torch.equal(product(*factors), exact)
    torch.testing.assert_close(rounded.float(), exact, rtol=2e-2, atol=5e-2)


def test_float32_changes_nothing(factors):
    plain = product(*factors)
    with matmul_in(torch.float32):
        assert torch.equal(product(*factors), plain) and product(*factors).dtype == torch.float32


def test_only_matrix_products_change_dtype(factors):
    x, _ = factors
    plain = (x * 3 + 1).softmax(-1)
    with matmul_in(torch.bfloat16):
        assert torch.equal((x * 3 + 1).softmax(-1), plain) and (x + x.bfloat16()).dtype == torch.float32


def test_greenlets_share_the_context_and_nested_ones_end(factors):
    """A micro-batch can pause inside a block while statistics are summed in float32."""

    def run():
        first = product(*factors)
        driver.switch()
        return first, product(*factors)

    driver = greenlet.getcurrent()
    worker = greenlet.greenlet(run)
    with matmul_in(torch.bfloat16):
        worker.switch()
        with matmul_in(torch.float32):
            assert product(*factors).dtype == torch.float32
        assert [part.dtype for part in worker.switch()] == [torch.bfloat16] * 2


def test_the_fastest_matmul_dtype_is_float32_or_bfloat16():
    assert fastest_matmul_dtype() in (torch.float32, torch.bfloat16)


@pytest.mark.parametrize(
    ("stored", "model_type", "new", "old"),
    [
        (torch.float16, "llama", torch.float16, torch.float16),
        (torch.bfloat16, "llama", torch.bfloat16, torch.float16),
        (torch.bfloat16, "gemma2", torch.bfloat16, torch.float32),
        (torch.float16, "gemma2", torch.bfloat16, torch.float32),
        (torch.float32, "llama", torch.float32, torch.float32),
        (torch.bfloat16, "unknown", torch.bfloat16, torch.float16),
    ],
)
def test_a_gpu_runs_a_model_in_its_own_dtype_unless_it_overflows(monkeypatch, stored, model_type, new, old):
    for native, expected in ((True, new), (False, old)):
        monkeypatch.setattr("compress.model.precision.has_bfloat16", lambda native=native: native)
        assert gpu_dtype(stored, model_type) == expected


def test_statistics_on_a_gpu_never_use_float16_products(monkeypatch):
    for native, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr("compress.model.precision.has_bfloat16", lambda native=native: native)
        assert rough_dtype(torch.float16) == rough_dtype(torch.bfloat16) == expected
        assert rough_dtype(torch.float32) == torch.float32
