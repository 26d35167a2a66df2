"""The script for the day that there is a GPU, tried on a pretended one with tiny shapes."""

import importlib
import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from compress.quantize.methods import gptq
from tests.pretend.cuda_api import forget_accelerator
from tests.pretend.kernels import OneLaunchKernels

pytestmark = pytest.mark.slow  # runs whole jobs

SCRIPTS = str(Path(__file__).parents[2] / "scripts")


@pytest.fixture
def gpu_day(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module("gpu_day")


def test_every_step_runs_on_tiny_shapes(gpu, gpu_day, tiny_llama, tmp_path, monkeypatch):
    forget_accelerator()
    for module in (gpu_day, gptq, sys.modules["compress.quantize.methods.refine"]):
        monkeypatch.setattr(module, "triton_kernels", lambda: OneLaunchKernels(gpu))
    options = ["--tiny", "--blocks", "1", "--model", str(tiny_llama), "--out", str(tmp_path / "day"), "--json"]
    result = CliRunner().invoke(gpu_day.main, options)
    assert result.exit_code == 0, result.output
    results = json.loads((tmp_path / "day/results.json").read_text())
    steps = {row["step"]: row for row in results["steps"]}
    assert len(steps) == 7 and not any("error" in row for row in steps.values())
    assert max(steps["kernels"]["other_codes"], steps["kernels"]["other_refined_codes"]) < 2e-3
    assert steps["loss"]["gradient_error"] < 1e-2
    assert 0 < steps["verify model"]["kl"] < 1 and steps["distill 1 blocks"]["tokens_per_second"] > 0


def test_a_failed_step_is_in_its_row_and_the_others_run(gpu_day):
    def fail():
        raise ValueError("broken")

    rows = gpu_day.run_steps({"first": fail, "second": lambda: {"seconds": 1}}, limit=60)
    assert rows == [{"step": "first", "error": "ValueError: broken"}, {"step": "second", "seconds": 1}]
    assert "not started" in gpu_day.run_steps({"late": fail}, limit=-1)[0]["error"]


@pytest.mark.parametrize(
    ("name", "card"), [("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA L4", "l4"), ("NVIDIA GeForce GTX 1080", None)]
)
def test_the_card_is_found_by_the_name_that_torch_reports(gpu_day, name, card):
    found = gpu_day.card_of(name)
    assert (found.name if found else None) == card
