"""qcompress plan: the printed command writes the planned bytes, and the table fits one screen."""

import json
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from compress.checkpoint.read import Checkpoint
from compress.cli import cli
from compress.core.config import METHODS, QuantizeConfig
from compress.quantize.layout.job_plan import plan_without_weights
from compress.quantize.layout.prediction import FACTOR, SHARES
from compress.recipe import load_recipe

pytestmark = pytest.mark.slow  # runs whole jobs


def invoke(*arguments):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def rows_of(*arguments):
    result = CliRunner().invoke(cli, ["plan", *map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.parametrize(("share", "measured"), [(0.0, ()), (1.0, ()), (0.5, ("--measure",))])
def test_the_printed_command_writes_the_planned_bytes(tiny_qwen2, tmp_path, share, measured):
    sizes = sorted(row["bytes"] for row in rows_of(tiny_qwen2, "--all"))
    limit = sizes[int(share * (len(sizes) - 1))]
    result = invoke("plan", tiny_qwen2, "--max-size", f"{limit}B", *measured)
    line = result.stdout.splitlines()[-1]
    taken = [row for row in rows_of(tiny_qwen2, "--max-size", f"{limit}B", *measured) if row.get("take")]
    assert result.exit_code == 0 and len(taken) == 1 and taken[0]["fits"]
    arguments = shlex.split(line.removeprefix("qcompress "))
    arguments[-1] = str(tmp_path / "out")
    written = invoke(*arguments, "--samples", 4, "--seq-len", 32)
    assert written.exit_code == 0, written.output
    assert Checkpoint(tmp_path / "out").bytes == taken[0]["bytes"] <= limit


def test_a_budget_that_no_layout_fits_exits_with_1_and_names_the_smallest(tiny_qwen2):
    least = min(row["bytes"] for row in rows_of(tiny_qwen2, "--all"))
    result = invoke("plan", tiny_qwen2, "--max-size", f"{least - 1}B")
    assert result.exit_code == 1 and f"has {least:,} bytes, 1 over" in result.stderr
    assert invoke("plan", tiny_qwen2, "--max-size", f"{least}B").exit_code == 0


def test_runs_in_and_format_filter_the_layouts(tiny_qwen2):
    for name, key in (("vllm-cpu", "vllm_cpu"), ("transformers", "transformers")):
        rows = rows_of(tiny_qwen2, "--runs-in", name, "--all")
        assert rows and all(row[key] for row in rows)
    assert {row["format"] for row in rows_of(tiny_qwen2, "--format", "awq", "--all")} == {"awq"}


@pytest.mark.parametrize("limit", [(), ("--max-size", "2GB"), ("--measure",)])
def test_at_most_8_layouts_are_listed_the_recommended_one_first(tiny_qwen2, limit):
    rows, every = rows_of(tiny_qwen2, *limit), rows_of(tiny_qwen2, *limit, "--all")
    assert len(rows) == 8 < len(every)
    assert [row.get("take") for row in rows] == [True] + 7 * [None]
    assert rows[0] == every[0] and all(row in every for row in rows)
    sizes = [row["bytes"] for row in rows[1:]]
    assert sizes == sorted(sizes, reverse=True)


def test_without_a_budget_plain_4_bits_are_recommended(tiny_qwen2):
    first = rows_of(tiny_qwen2)[0]
    assert (first["format"], first["head_bits"], first["embedding_bits"], first["eight_bit"]) == ("awq", 16, 16, None)
    lines = invoke("plan", tiny_qwen2).stdout.splitlines()
    assert "about as plain 4 bits" in lines[1] and max(map(len, lines[:9])) <= 108
    assert "The model has 184.1 kB in 16 bits." in lines[10] and first["source_bytes"] == Checkpoint(tiny_qwen2).bytes


@pytest.mark.parametrize("limit", [(), ("--max-size", "80kB"), ("--runs-in", "transformers"), ("--measure",)])
def test_exactly_one_row_is_marked_as_recommended(tiny_qwen2, limit):
    lines = invoke("plan", tiny_qwen2, *limit).stdout.splitlines()
    table = lines[1 : lines.index("")]
    assert [line.startswith(" * ") for line in table] == [True] + (len(table) - 1) * [False]
    assert lines[len(table) + 2].startswith("* is recommended.")


@pytest.mark.parametrize("size", [64, 96, 128])
def test_the_recommended_layout_is_what_quantize_writes_by_default(tiny_llama, tmp_path, size):
    config = json.loads((tiny_llama / "config.json").read_text()) | {"intermediate_size": size, "hidden_size": 128}
    config |= {"head_dim": 32, "vocab_size": 512}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for options in ((), ("--format", "gptq"), ("--format", "compressed-tensors")):
        first = rows_of(tmp_path, *options)[0]
        plan = plan_without_weights("model", config, QuantizeConfig(format=first["format"]))
        assert (first["group_size"], first["bytes"]) == (plan.scheme.group_size, plan.bytes)
        assert first["group_size"] == {64: 64, 96: 32, 128: 128}[size]


def test_a_measured_row_predicts_the_kl_of_every_method(tiny_qwen2):
    rows = rows_of(tiny_qwen2, "--measure")
    for row in rows:
        assert list(row["predicted_kl"]) == list(METHODS) and row["predicted_factor"] == FACTOR
        rounding = row["predicted_kl"]["rtn"] / SHARES["rtn"]
        if (row["head_bits"], row["embedding_bits"]) == (16, 16):
            assert row["predicted_kl"] == pytest.approx({name: share * rounding for name, share in SHARES.items()})
    lines = invoke("plan", tiny_qwen2, "--measure").stdout.splitlines()
    assert lines[0].split()[-4:] == list(METHODS) and max(map(len, lines[:9])) <= 108
    assert "predicted_kl" not in rows_of(tiny_qwen2)[0]


def test_a_config_without_weights_gets_a_command_with_a_placeholder(tiny_qwen2, tmp_path):
    (tmp_path / "shape.json").write_text((tiny_qwen2 / "config.json").read_text())
    lines = invoke("plan", tmp_path / "shape.json").stdout.splitlines()
    assert lines[-2].startswith("Replace MODEL") and lines[-1].endswith("MODEL --group-size 64 -o shape-4bit")


def test_a_config_alone_can_be_planned_but_not_measured(tiny_qwen2, tmp_path):
    (tmp_path / "config.json").write_text((tiny_qwen2 / "config.json").read_text())
    assert rows_of(tmp_path) == rows_of(tiny_qwen2) == rows_of(tmp_path / "config.json")
    result = invoke("plan", tmp_path, "--measure")
    assert result.exit_code == 1 and "no *.safetensors" in result.stderr


def test_a_quantized_checkpoint_is_not_planned(tiny_qwen2, tmp_path):
    config = json.loads((tiny_qwen2 / "config.json").read_text()) | {"quantization_config": {"quant_method": "awq"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    result = invoke("plan", tmp_path)
    assert result.exit_code == 1 and "already quantized (awq)" in result.stderr


def test_a_recipe_variant_has_the_layout_options(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    part = (
        "{name: small, method: gptq, format: compressed-tensors, head_bits: 4, embedding_bits: 8, eight_bit: [o_proj]}"
    )
    recipe.write_text(f"teacher: x\nout: y\nquantize:\n  - {part}\n")
    config = load_recipe(recipe).quantize[0].config()
    assert (config.head_bits, config.embedding_bits, config.eight_bit) == (4, 8, ("o_proj",))


def test_a_board_limits_the_layouts_and_prefers_plain_four_bits():
    config = Path(__file__).parents[2] / "recipes" / "configs" / "seed-student.json"
    plan = ["plan", str(config), "--hardware", "4x-rtx-4090d"]
    result = CliRunner().invoke(cli, plan)
    assert result.exit_code == 0 and result.stdout.endswith("quantize MODEL --group-size 64 -o seed-student-4bit\n")
    smaller = CliRunner().invoke(cli, [*plan, "--max-size", "1.4GB"])
    assert smaller.exit_code == 0 and "--embedding-bits" in smaller.stdout
    full = CliRunner().invoke(cli, ["plan", str(config), "--hardware", "orin-nano", "--requests", "99"])
    assert full.exit_code == 1 and "leave no room for weights on Jetson Orin Nano 8GB" in full.stderr
    assert CliRunner().invoke(cli, ["plan", str(config), "--hardware", "pi5"]).exit_code == 2
