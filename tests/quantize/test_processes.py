import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from compress.checkpoint.formats import quantized_weight
from compress.checkpoint.read import Checkpoint
from compress.core.config import METHODS, QuantizeConfig
from compress.core.errors import QCompressError
from compress.quantize.job import quantize_checkpoint
from compress.quantize.processes import join_processes

pytestmark = pytest.mark.slow  # runs whole jobs

OPTIONS = ("--method", "gptq", "--samples", "128", "--seq-len", "32")


def test_two_processes_choose_the_same_codes_as_one(tiny_llama, tmp_path):
    one, two = by_one_and_by_two(tiny_llama, tmp_path, 0.0)
    assert share_of_other_codes(one, two, "model.layers.0.self_attn.q_proj") < 2e-3  # sums in another order flip ties
    for ours, theirs in zip(Checkpoint(one).record["rows"], Checkpoint(two).record["rows"], strict=True):
        assert theirs["error"] == pytest.approx(ours["error"], rel=0.05), ours["linear"]  # later ones see flipped ties


def test_two_processes_correct_the_errors_of_all_windows(tiny_llama, tmp_path):
    one, two = by_one_and_by_two(tiny_llama, tmp_path, 0.5)
    assert share_of_other_codes(one, two, "model.layers.0.self_attn.o_proj") < 0.1  # by the first's windows alone: 0.23


def test_two_processes_try_every_method_and_publish_once(tiny_llama, tmp_path):
    out = tmp_path / "best"
    output = by_two(tiny_llama, "--method", "auto", "--samples", "128", "--seq-len", "32", "--json", "--out", str(out))
    kl = {row["candidate"]: row["eval_kl"] for row in Checkpoint(out).record["candidates"]}
    assert set(kl) == set(METHODS) and json.loads(output)["eval_kl"] == min(kl.values())
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def by_one_and_by_two(model: Path, folder: Path, error_correction: float) -> tuple[Path, Path]:
    """Two checkpoints with the same settings: one process wrote the first, two processes wrote the second."""
    one, two = folder / "one", folder / "two"
    config = QuantizeConfig(method="gptq", format="gptq", error_correction=error_correction, samples=128, seq_len=32)
    quantize_checkpoint(model, one, config)
    by_two(model, *OPTIONS, "--error-correction", str(error_correction), "--out", str(two))
    return one, two


def by_two(model: Path, *options: str) -> str:
    """Run `qcompress quantize` with two processes. Returns stdout."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    arguments = ["-m", "compress.cli", "quantize", str(model), *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launcher, *arguments], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-20000:]
    return done.stdout


def share_of_other_codes(one: Path, two: Path, name: str) -> float:
    codes = [quantized_weight(Checkpoint(path), name).codes for path in (one, two)]
    assert codes[0].any()
    return (codes[0] != codes[1]).float().mean().item()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_processes_on_gpus_are_connected_by_their_gpus(monkeypatch, device):
    asked = []
    state = SimpleNamespace(process_index=1, num_processes=2)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("accelerate.PartialState", lambda cpu, timeout: asked.append(cpu) or state)
    assert (join_processes(device).rank, asked) == (1, [device == "cpu"])


def test_more_processes_than_gpus_are_refused_with_both_numbers(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(QCompressError, match="4 processes run on this machine, but torch finds 2 GPUs"):
        join_processes("cuda")
