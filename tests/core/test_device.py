import pytest

from compress.core.device import has_bfloat16, pick_device, rank_device
from compress.core.errors import QCompressError


@pytest.mark.parametrize(
    ("name", "gpu", "device"),
    [("auto", False, "cpu"), ("auto", True, "cuda"), ("cpu", True, "cpu"), ("cuda", True, "cuda")],
)
def test_auto_selects_the_gpu_if_torch_finds_one(monkeypatch, name, gpu, device):
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    assert pick_device(name) == device


def test_a_missing_gpu_is_an_error_that_names_the_option(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(QCompressError, match="--device cuda: torch finds no GPU"):
        pick_device("cuda")


@pytest.mark.parametrize(
    ("name", "rank", "device"), [("auto", 0, "cuda:0"), ("auto", 3, "cuda:1"), ("cuda", 1, "cuda:1"), ("cpu", 1, "cpu")]
)
def test_ranks_are_spread_over_all_gpus(monkeypatch, name, rank, device):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert str(rank_device(name, rank)) == device


def test_emulated_bfloat16_does_not_count(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert not has_bfloat16()
