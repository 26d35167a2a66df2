"""`qcompress check`: exit codes, one line per failure, JSON."""

import json
import shutil

import pytest
from click.testing import CliRunner

from compress.checkpoint.record import DIGESTS
from compress.cli import cli


def run(*arguments):
    return CliRunner().invoke(cli, ["check", *map(str, arguments)])


@pytest.fixture
def damaged(good, tmp_path):
    path = shutil.copytree(good("llama", "gptq"), tmp_path / "model")
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"]["desc_act"] = True
    (path / "config.json").write_text(json.dumps(config))
    return path


@pytest.mark.parametrize("kind", ["plain", "awq", "gptq", "ct"])
def test_a_correct_checkpoint_exits_with_0(good, kind):
    result = run(good("qwen2", kind))
    assert result.exit_code == 0 and "no errors" in result.stdout


def test_an_error_exits_with_3_and_names_key_value_and_consequence(damaged):
    result = run(damaged)
    assert result.exit_code == 3
    line = next(line for line in result.stdout.splitlines() if " C5 " in line)
    assert line.startswith("error") and "quantization_config.desc_act: True (expected: False): vLLM stops" in line
    assert (
        result.stderr.strip() == f"Error: {damaged}: 2 errors, 2 warnings; loaders would fail or generate wrong text; "
        "write the checkpoint again"
    )


def test_a_missing_checkpoint_exits_with_1_in_one_line(tmp_path):
    result = run(tmp_path / "nowhere")
    assert result.exit_code == 1 and result.stderr.count("\n") == 1 and not result.stdout


def test_json_holds_every_row_and_nothing_else(damaged):
    result = run(damaged, "--json")
    rows = json.loads(result.stdout)
    assert result.exit_code == 3 and {row["rule"] for row in rows if row["level"] == "error"} == {"C5", "D2"}
    assert json.loads(run(damaged.parent / "model", "--json").stdout) == rows


def test_tensor_parallel_size_and_source_reach_the_rules(good):
    assert run(good("llama", "awq"), "--tensor-parallel-size", 4).exit_code == 3
    assert run(good("llama", "awq"), "--source", good("llama", "plain")).exit_code == 0
    assert run(good("llama", "awq"), "--source", good("qwen2", "plain")).exit_code == 3


def test_a_checkpoint_without_digests_passes_with_a_notice(good, tmp_path):
    path = shutil.copytree(good("llama", "awq"), tmp_path / "model")
    (path / DIGESTS).unlink()
    result = run(path)
    assert result.exit_code == 0 and f"no {DIGESTS}" in result.stdout


def test_a_mistake_in_every_linear_prints_one_line(good, tmp_path):
    path = shutil.copytree(good("llama", "gptq"), tmp_path / "model")
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"]["group_size"] = 64
    (path / "config.json").write_text(json.dumps(config))
    (line,) = [line for line in run(path).stdout.splitlines() if line.startswith("error    T3")]
    rows = [row for row in json.loads(run(path, "--json").stdout) if row["rule"] == "T3"]
    assert f"(and {len(rows) - 1} more; --json lists all)" in line and len(rows) > 8


def test_the_comparisons_are_printed_with_their_counts(good, tmp_path):
    shown = run(good("llama", "awq"), "--source", good("llama", "plain")).stdout
    assert f"compared 14 packed linears with {good('llama', 'plain')}: all match" in shown
    assert "nothing with a source checkpoint" in run(good("llama", "awq")).stdout


def test_json_prints_the_comparisons_on_stderr(good):
    result = run(good("llama", "awq"), "--json")
    assert json.loads(result.stdout) is not None and "with their digests: all match" in result.stderr
