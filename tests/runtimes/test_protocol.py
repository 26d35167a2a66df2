"""The one place that picks a runtime."""

import pytest

from compress.core.errors import QCompressError
from compress.runtimes import protocol
from compress.runtimes.protocol import pick_runtime


def test_auto_is_vllm_only_if_it_is_installed(monkeypatch):
    monkeypatch.setattr(protocol, "find_spec", lambda name: None)
    assert pick_runtime("auto") == pick_runtime("transformers") == "transformers"
    monkeypatch.setattr(protocol, "find_spec", lambda name: name)
    assert (pick_runtime("auto"), pick_runtime("vllm"), pick_runtime("transformers")) == (
        "vllm",
        "vllm",
        "transformers",
    )


def test_vllm_is_rejected_if_it_is_not_installed(monkeypatch):
    monkeypatch.setattr(protocol, "find_spec", lambda name: None)
    with pytest.raises(QCompressError, match=r"--runtime vllm: vLLM is not installed.*use --runtime transformers"):
        pick_runtime("vllm")


def test_vllm_never_runs_on_the_cpu_beside_a_gpu(monkeypatch):
    monkeypatch.setattr(protocol, "find_spec", lambda name: name)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert (pick_runtime("auto", "cpu"), pick_runtime("auto", "cuda")) == ("transformers", "vllm")
    with pytest.raises(QCompressError, match="--device cpu"):
        pick_runtime("vllm", "cpu")
