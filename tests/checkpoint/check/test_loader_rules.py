"""Other runtimes than vLLM: what they cannot read is an error with a cure, and what they read passes."""

import json

import pytest
from click.testing import CliRunner

from compress.checkpoint.check.loaders import LOADERS, RUNTIMES
from compress.checkpoint.check.run import RULES, check_checkpoint, rules_for
from compress.cli import cli
from compress.core.errors import QCompressError

READS = {  # runtime: kinds of the fixture that it reads
    "llama.cpp": (),
    "mlx": ("plain", "awq"),
    "ort-genai": ("plain", "awq", "gptq"),
}
KINDS = ("plain", "awq", "gptq", "ct", "ct-asym")


def errors(path, runtime):
    return [row for row in check_checkpoint(path, runs_in=runtime) if row["level"] == "error"]


@pytest.mark.parametrize("runtime", READS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_runtime_reads_exactly_its_layouts(good, runtime, kind):
    found = errors(good("llama", kind), runtime)
    assert (found == []) == (kind in READS[runtime]), found
    assert {row["rule"] for row in found} <= {"R1"} and all(row["cure"] for row in found)


@pytest.mark.parametrize(
    ("kind", "runtime", "cure"),
    [
        ("gptq", "mlx", "--to awq"),
        ("ct", "mlx", "--to awq"),
        ("ct-asym", "ort-genai", "--to awq"),
        ("awq", "llama.cpp", "--to gguf"),
        ("plain", "llama.cpp", "quantize the 16-bit model with --format gptq, then convert it with --to gguf"),
    ],
)
def test_the_cure_is_a_conversion_that_keeps_the_codes(good, kind, runtime, cure):
    (row,) = errors(good("llama", kind), runtime)
    assert cure in row["cure"] and (str(good("llama", kind)) in row["cure"] or kind == "plain")


def test_edge_llm_refuses_groups_other_than_128(good):
    found = errors(good("llama", "awq"), "tensorrt-edge-llm")
    assert {row["rule"] for row in found} == {"R3"} and "--group-size 128" in found[0]["cure"]


def test_eight_bits_and_an_unknown_architecture_are_errors(good, tmp_path):
    path = tmp_path / "gptq8"
    path.mkdir()
    for file in good("llama", "gptq").iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"]["bits"] = 8
    config["architectures"] = ["OPTForCausalLM"]
    (path / "config.json").write_text(json.dumps(config))
    assert {"R2", "R5"} & {row["rule"] for row in errors(path, "ort-genai")} == {"R5"}
    assert "R2" in {row["rule"] for row in errors(path, "tensorrt-edge-llm")}


def test_damage_is_found_for_every_runtime(good, tmp_path):
    path = tmp_path / "broken"
    path.mkdir()
    for file in good("llama", "awq").iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    (path / "tokenizer.json").write_text("{")
    for runtime in RUNTIMES:
        assert any(row["rule"].startswith("P") for row in errors(path, runtime)), runtime


def test_rules_of_vllm_apply_to_vllm_alone():
    assert rules_for("vllm") == RULES
    for runtime in LOADERS:
        ids = {rule.id for rule in rules_for(runtime)}
        assert {"R1", "R5", "T12", "D1"} <= ids and not {"TP", "T4", "T8", "C4", "O1"} & ids
    with pytest.raises(QCompressError, match=r"--runs-in tgi: unknown runtime; use vllm, llama\.cpp, mlx"):
        rules_for("tgi")


def test_every_row_names_its_sources():
    for name, loader in LOADERS.items():
        assert loader.name == name and loader.version and loader.sources
        assert all(source.startswith("https://") for source in loader.sources)


def test_the_command_ends_with_the_cure_and_exit_code_3(good):
    path = good("llama", "gptq")
    result = CliRunner().invoke(cli, ["check", str(path), "--runs-in", "mlx"])
    assert result.exit_code == 3 and f"mlx cannot read it: qcompress convert {path} --to awq" in result.stderr
    assert CliRunner().invoke(cli, ["check", str(good("llama", "awq")), "--runs-in", "mlx"]).exit_code == 0
