"""Every command that runs a model, on a pretended GPU and on the CPU: the same results, within the dtype's rounding."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from compress.checkpoint.read import Checkpoint
from compress.cli import cli
from tests.pretend.cuda_api import forget_accelerator

pytestmark = pytest.mark.slow  # runs whole jobs

DEVICES = ("cpu", "cuda")
BATCH = ("--batch-size", 2, "--eval-every", 2)


def run(command: str, *arguments: object) -> Any:
    """The JSON of a command that succeeds, as in a process of its own."""
    forget_accelerator()
    result = CliRunner().invoke(cli, [command, *map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def tensors(path: Path) -> dict[str, torch.Tensor]:
    checkpoint = Checkpoint(path)
    return {name: checkpoint.tensor(name) for name in checkpoint.tensors}


@pytest.mark.parametrize("method", ["gptq", "awq+gptq"])
def test_float32_quantization_gives_the_same_tensors(gpu, tiny_llama, tmp_path, short, method):
    outs = [tmp_path / device for device in DEVICES]
    for device, out in zip(DEVICES, outs, strict=True):
        run("quantize", tiny_llama, "-o", out, "--method", method, *short, "--samples", 8, "--device", device,
            "--compute-dtype", "float32")  # fmt: skip
    cpu, cuda = map(tensors, outs)
    assert cpu.keys() == cuda.keys()
    assert [name for name in cpu if not torch.equal(cpu[name], cuda[name])] == []


def test_tuning_on_a_gpu_lowers_the_kl_as_on_a_cpu(gpu, tiny_llama, tmp_path, text):
    notes = {}
    for device in DEVICES:
        out = tmp_path / device
        run("quantize", tiny_llama, "-o", out, "--method", "awq", "--error-correction", 0, "--tune", 1, "--text", text,
            "--seq-len", 16, "--samples", 5, "--device", device)  # fmt: skip
        notes[device] = Checkpoint(out).record["tune"]
    for key in ("kl_before", "kl_blocks", "kl"):
        assert notes["cuda"][key] == pytest.approx(notes["cpu"][key], rel=0.25)
    assert notes["cuda"]["kl"] < notes["cuda"]["kl_before"]


def test_distillation_on_a_gpu_follows_the_curve_of_the_cpu(gpu, tiny_llama, tmp_path, short):
    curves = {}
    for device in DEVICES:
        out = tmp_path / device
        run("distill", tiny_llama, "-o", out, "--blocks", 1, *short, "--steps", 4, "--batch-size", 4, "--eval-every", 2,
            "--eval-samples", 2, "--eval-seq-len", 32, "--learning-rate", 1e-3, "--device", device)  # fmt: skip
        curves[device] = Checkpoint(out).record["loss"]
    for ours, theirs in zip(curves["cpu"], curves["cuda"], strict=True):
        assert theirs["loss"] == pytest.approx(ours["loss"], rel=0.03)


def test_a_cache_that_a_cpu_began_continues_on_a_gpu_and_trains_a_student(gpu, tiny_llama, tmp_path, short):
    cache, sizes = tmp_path / "cache", ["--samples", 8, "--shard-windows", 4, "--codec", "hidden"]
    run("capture", tiny_llama, "-o", cache, *short, *sizes, "--device", "cpu")
    last = max(cache.glob("targets-*.safetensors"))
    last.unlink()
    run("capture", tiny_llama, "-o", cache, *short, *sizes, "--device", "cuda")
    assert last.is_file()
    row = run("distill", tiny_llama, "-o", tmp_path / "student", "--blocks", 1, *short, "--cache", cache, "--steps", 4,
              *BATCH, "--eval-samples", 2, "--eval-seq-len", 32, "--device", "cuda")  # fmt: skip
    assert 0 < row["kl_after"] < row["kl_before"]


def test_drift_on_a_gpu_equals_that_of_the_cpu(gpu, tiny_llama, tmp_path, short, text):
    out = tmp_path / "awq"
    run("quantize", tiny_llama, "-o", out, "--method", "rtn", "--format", "awq", "--device", "cuda")
    sizes = ["--eval-text", text, "--samples", 2, "--seq-len", 32]
    for command in ("verify", "compare"):
        rows = [run(command, tiny_llama, out, *sizes, "--locate", "--device", device) for device in DEVICES]
        cpu, cuda = (row[-1] if isinstance(row, list) else row for row in rows)
        assert cuda["kl"] == pytest.approx(cpu["kl"], rel=0.02)
        assert cuda["perplexity"] == pytest.approx(cpu["perplexity"], rel=1e-3)
        assert [block["gain"] for block in cuda["blocks"]] == pytest.approx(
            [b["gain"] for b in cpu["blocks"]], rel=1e-2
        )


def test_tasks_on_a_gpu_have_the_answers_of_the_cpu(gpu, tiny_llama, tmp_path):
    rows = [
        run("eval", tiny_llama, "--reference", tiny_llama, "--kind", "qa", "--limit", 1, "-o", tmp_path / device,
            "--runtime", "transformers", "--device", device)
        for device in DEVICES
    ]  # fmt: skip
    assert [row["score"] for row in rows[0]] == [row["score"] for row in rows[1]]


def test_a_student_that_a_gpu_cuts_has_the_blocks_of_the_cpu(gpu, tiny_llama, tmp_path, short):
    outs = [tmp_path / device for device in DEVICES]
    for device, out in zip(DEVICES, outs, strict=True):
        run("init-student", tiny_llama, "-o", out, "--num-layers", 1, "--intermediate-size", 64, *short,
            "--eval-samples", 2, "--eval-seq-len", 32, "--device", device)  # fmt: skip
    cpu, cuda = (Checkpoint(out).record for out in outs)
    assert cpu["blocks"] == cuda["blocks"]
    assert list(cuda["sweep"].values()) == pytest.approx(list(cpu["sweep"].values()), rel=1e-3)
    ours, theirs = map(tensors, outs)
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_a_measured_plan_on_a_gpu_predicts_the_kl_of_the_cpu(gpu, tiny_llama):
    rows = [
        run("plan", tiny_llama, "--measure", "--format", "gptq", "--device", device, "--max-size", "80KB")
        for device in DEVICES
    ]
    for cpu, cuda in zip(*rows, strict=True):
        assert cuda["predicted_kl"] == pytest.approx(cpu["predicted_kl"], rel=1e-2)
