"""The benchmark scripts count operations, compare targets and write shapes correctly."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from click.testing import CliRunner

from compress.checkpoint.check.run import check_checkpoint
from compress.checkpoint.load import load_model
from compress.checkpoint.read import Checkpoint
from compress.core.backend_config import BACKENDS
from compress.core.errors import QCompressError
from compress.model.shapes import parameter_shapes

pytestmark = pytest.mark.slow  # runs whole jobs

SCRIPTS = Path(__file__).parents[2] / "scripts"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(SCRIPTS))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(SCRIPTS))
    return module


def test_operations_of_a_pass_are_those_counted_by_hand():
    flops = script("roofline").pass_flops([(3, 2), (5, 4)], [2, 4], tokens=10, seq_len=5, attention=7)
    assert flops == 2 * 10 * (6 + 20) + 2 * 10 * 5 * 7 + 10 * (4 + 16)


def test_operations_grow_with_windows_but_only_attention_with_their_length():
    count = script("roofline").pass_flops
    sizes = {"tokens": 64, "attention": 4}
    one = count([(3, 2)], [2], seq_len=8, **sizes)
    assert count([(3, 2)], [2], tokens=128, seq_len=8, attention=4) == 2 * one
    assert count([(3, 2)], [2], seq_len=16, **sizes) - one == 2 * 64 * 8 * 4


def test_targets_use_the_best_backend_of_the_same_groups():
    rows = [{"name": "gptq", "kl": 0.1, "seconds": 9.0}, {"name": "llm-compressor", "kl": 0.3}]
    rows += [{"name": "gptqmodel", "kl": 0.2, "seconds": 80.0}, {"name": "awq", "failed": "for a reason"}]
    rows += [{"name": "llama.cpp Q4_K_M", "kl": 0.01, "seconds": 1.0}]
    targets = {row["name"]: row for row in script("bench_quantize").compare_targets(rows)}
    assert targets["gptq: kl / best backend"]["measured"] == pytest.approx(0.5)
    assert targets["gptq: kl / best backend"]["met"] is True
    assert targets["gptq: seconds / gptqmodel"]["met"] is True
    assert targets["gptq: seconds / llm-compressor"]["met"] == "not measured"
    assert targets["awq+gptq: kl / best backend"]["measured"] is None


def variant(bench, name):
    return next(each for each in bench.VARIANTS if each.name == name)


def test_every_variant_of_the_bench_is_a_valid_command(tmp_path):
    from compress.cli.quantize import command

    bench = script("bench_quantize")
    job = bench.QuantizerJob(tmp_path, tmp_path / "out", "default", 64, 2, 64)
    for each in bench.VARIANTS:
        words = bench.command(each, job)
        command.make_context("quantize", words[words.index("quantize") + 1 :])
    assert "--group-size" not in bench.command(variant(bench, "llama.cpp Q4_0"), job)
    assert {each.backend for each in bench.VARIANTS} == {None, *BACKENDS}


def test_the_bench_runs_a_method_and_reports_a_missing_backend(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setenv("QCOMPRESS_BACKENDS", str(tmp_path / "nowhere"))
    bench = script("bench_quantize")
    job = bench.QuantizerJob(tiny_llama, tmp_path / "out", "default", 32, 4, 32)
    row = bench.inspect(bench.run(variant(bench, "gptq"), job), job, None)
    assert row["check_errors"] == 0 and row["seconds"] > 0 and row["bytes"] > 0
    bench.score(tiny_llama, [row], lambda name: tmp_path / "out", ("heldout", "heldout"), 2, 32)
    assert row["kl"] == row["other_kl"] > 0
    missing = bench.run(variant(bench, "autoawq"), job)
    assert "qcompress backends install autoawq" in missing["failed"]
    assert bench.inspect(missing, job, None) == missing


@pytest.mark.parametrize("family", ["tiny_llama", "tiny_qwen2"])
def test_make_shape_writes_the_configs_shapes_and_loads(family, request, tmp_path):
    source = request.getfixturevalue(family)
    arguments = [str(source / "config.json"), "--blocks", "3", "--out", str(tmp_path / "shape")]
    result = CliRunner().invoke(
        script("make_shape").main, [*arguments, "--tokenizer", str(source)], catch_exceptions=False
    )
    assert result.exit_code == 0
    config = json.loads((tmp_path / "shape" / "config.json").read_text())
    model = load_model(tmp_path / "shape")
    assert config["num_hidden_layers"] == 3
    assert {name: tuple(p.shape) for name, p in model.named_parameters()} == parameter_shapes(config)
    weight = model.get_parameter("model.layers.2.mlp.down_proj.weight")
    assert weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert torch.equal(model.get_parameter("model.norm.weight"), torch.ones(64))
    assert (tmp_path / "shape" / "tokenizer.json").is_file()


def test_the_peak_of_a_process_is_seen_from_outside(tmp_path):
    command = [sys.executable, "-c", "x = bytearray(200_000_000); import time; time.sleep(1)"]
    row = script("bench_memory").watch(command, tmp_path / "log")
    assert row["sampled_bytes"] > 200_000_000 and row["vmhwm_bytes"] > 200_000_000


def test_the_curves_of_four_variants_have_the_same_steps_and_begin_alike(tiny_llama, tmp_path):
    (tmp_path / "task.txt").write_text("\n\n".join(f"question {i}: what is {i} and {i}? {i + i}." for i in range(400)))
    sizes = ["--blocks", "1", "--batch-size", "2", "--seq-len", "32", "--eval-samples", "24", "--points", "2"]
    texts = ["--text", "default", "--task", str(tmp_path / "task.txt"), "--eval-text", "heldout"]
    arguments = [str(tiny_llama), "-o", str(tmp_path / "out"), *texts, *sizes, "--minutes", "0.01"]
    shown = CliRunner().invoke(script("bench_distill_curve").main, arguments, catch_exceptions=False)
    assert shown.exit_code == 0
    rows = json.loads((tmp_path / "out/curve.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["CE", "KD", "KD + hidden", "KD in stages"]
    assert len({row["kl_before"] for row in rows}) == 1 and {row["steps"] for row in rows} == {rows[0]["steps"]}
    assert all(row["points"][-1]["tokens"] == row["tokens"] == 64 * row["steps"] >= 128 for row in rows)
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"curve.json", "curve.md", "curve.svg", "curve.png"}
    assert [point["loss"] for point in rows[0]["loss"]] == pytest.approx([point["ce"] for point in rows[0]["loss"]])


@pytest.mark.parametrize("family", ["tiny_llama", "tiny_qwen2"])
def test_a_damaged_copy_is_valid_and_differs_in_one_block_only(family, request, tmp_path):
    source, out, stale = request.getfixturevalue(family), tmp_path / "out", tmp_path / "stale"
    damaged = script("damage").damage(source, out, 1, 1.05)
    script("damage").damage(source, stale, 1, 1.05, stale_digests=True)
    before, after = Checkpoint(source), Checkpoint(out)
    changed = {n for n in before.tensors if not torch.equal(before.tensor(n), after.tensor(n))}
    assert changed == set(damaged) and len(damaged) == 7 and all(name.startswith("model.layers.1.") for name in damaged)
    for path, rules in ((out, set()), (stale, {"D1"})):
        assert {row["rule"] for row in check_checkpoint(path) if row["level"] == "error"} == rules


def test_damage_refuses_a_block_that_does_not_exist(tiny_llama, tmp_path):
    with pytest.raises(QCompressError, match="block 2 does not exist"):
        script("damage").damage(tiny_llama, tmp_path / "out", 2, 1.05)


def test_check_drift_passes_and_would_detect_a_difference(tiny_llama, tiny_qwen2, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox asks a question; the lazy dog answers it in a few words.\n" * 20)
    size = ["--samples", "2", "--seq-len", "32", "--json"]
    check = script("check_drift")
    result = CliRunner().invoke(check.main, [str(tiny_llama), str(tiny_qwen2), str(text), *size])
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)
    assert len(rows) == 9 and all(row["met"] for row in rows)
    assert check.difference("kl", 0.5, 0.5002) > check.TOLERANCE > check.difference("perplexity", 5.0, 5.0002)


def test_drift_and_bare_passes_take_turns(tiny_llama, tiny_qwen2, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox asks a question; the lazy dog answers it in a few words.\n" * 20)
    size = ["--tokens", "100", "--seq-len", "32", "--repeats", "2", "--json"]
    result = CliRunner().invoke(script("bench_drift").main, [str(tiny_llama), str(tiny_qwen2), str(text), *size])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert [row["tokens"] for row in report["rows"]] == [128, 128]
    rates = [row["tokens_per_second"] for row in report["rows"]]
    assert report["targets"][0]["measured"] == pytest.approx(rates[1] / rates[0])
    names = [line.split()[1] for line in result.stderr.splitlines() if line.startswith("name")]
    assert names == ["two", "drift", "two", "drift"]
