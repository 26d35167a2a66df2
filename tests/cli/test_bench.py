"""qcompress bench: one-line errors, rows for machines, tables for people, history."""

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from compress.cli import cli
from compress.evaluate.speed import measure as speed

CONFIG = Path(__file__).parents[2] / "recipes" / "configs" / "qwen2.5-7b-instruct.json"


def bench(*arguments):
    return CliRunner().invoke(cli, ["bench", *map(str, arguments)])


def test_a_config_alone_is_predicted_for_all_hardware():
    result = bench(CONFIG, "--hardware", "all", "--packed", "awq", "--predict-only", "--json")
    rows = json.loads(result.stdout)
    assert len(rows) == 30 and {row["kind"] for row in rows} == {"predicted"}
    fits = {(row["name"], row["hardware"]): row["fits"] for row in rows}
    assert not fits["qwen2.5-7b-instruct", "rtx-4060"] and fits["qwen2.5-7b-instruct as awq", "rtx-4060"]
    shown = bench(CONFIG, "--gpu-memory", "8GB", "--predict-only")
    assert shown.exit_code == 0 and "9.16 GB too much" in shown.stdout
    assert "15.23 GB" in shown.stdout and "57.3 kB" in shown.stdout and "15231" not in shown.stdout


def test_the_dtype_of_the_kv_cache_changes_the_prediction():
    rows = []
    for dtype in ("auto", "int8_per_token_head"):
        arguments = ("--hardware", "rtx-4060", "--packed", "awq", "--predict-only", "--json", "--kv-cache-dtype", dtype)
        rows.append(json.loads(bench(CONFIG, *arguments).stdout)[1])
    assert [row["kv_cache_dtype"] for row in rows] == ["auto", "int8_per_token_head"]
    assert rows[1]["largest_batch"] > 1.9 * rows[0]["largest_batch"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--hardware", "pi5", "--predict-only"], 1, "--hardware pi5: unknown name; use orin-nano"),
        (["--predict-only"], 2, "--predict-only needs --hardware or --gpu-memory"),
        (["--packed", "awq"], 2, "--packed needs --hardware or --gpu-memory"),
        (["--gpu-memory", "much", "--predict-only"], 2, "write it as 2GB"),
        (["--hardware", "t4", "--prompt-tokens", "40000", "--predict-only"], 1, "model's context of 32,768"),
        (["--new-tokens", "1"], 2, "1 is not in the range"),
    ],
)
def test_bad_input_is_one_error_line(arguments, code, message):
    result = bench(CONFIG, *arguments)
    assert result.exit_code == code and message in result.stderr and "Traceback" not in result.output


def test_a_missing_checkpoint_is_named_in_the_error(tmp_path):
    result = bench(tmp_path / "none", "--quick", "--runtime", "transformers")
    assert result.exit_code == 1 and f"{tmp_path / 'none'}: no such directory" in result.stderr


def test_measured_rows_are_printed_and_stored_in_the_history(tiny_llama, rounded, tmp_path, monkeypatch):
    script = tmp_path / "stand_in.py"
    line = {"sample": {"ttft_ms": 500.0, "tpot_ms": 32.3, "e2el_ms": 1500.0, "decode_throughput": 31.0}}
    script.write_text(f"import sys\nopen(sys.argv[2], 'a').write({json.dumps(line)!r} + chr(10))\n")
    monkeypatch.setitem(speed.WORKERS, "transformers", "stand_in")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    file = tmp_path / "verdicts.sqlite"
    result = bench(tiny_llama, rounded, "--quick", "--runtime", "transformers", "--history", file)
    assert result.exit_code == 0, result.output
    assert re.search(r"\d\.\d [kM]B ", result.stdout) and "weights" in result.stdout
    assert "500 (500–500)" in result.stdout and "128 prompt tokens, 32 new tokens" in result.stdout
    stored = json.loads(CliRunner().invoke(cli, ["history", str(file), "--json"]).stdout)
    assert [row["command"] for row in stored] == ["bench"] * 2 and stored[1]["decode_throughput_gain"] == 0


def test_without_any_measurement_rows_are_printed_and_the_exit_code_is_1(tiny_llama, tmp_path, monkeypatch):
    (tmp_path / "fails.py").write_text("raise ValueError('no such kernel')\n")
    monkeypatch.setitem(speed.WORKERS, "transformers", "fails")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    result = bench(tiny_llama, "--quick", "--runtime", "transformers", "--json")
    assert result.exit_code == 1 and "ValueError: no such kernel" in result.stderr
    assert json.loads(result.stdout)[0]["error"] == "ValueError: no such kernel"


def test_measurements_before_a_failure_count_as_success(tiny_llama, tmp_path, monkeypatch):
    line = {"sample": {"ttft_ms": 500.0, "e2el_ms": 1500.0}}
    script = f"import sys\nopen(sys.argv[2], 'a').write({json.dumps(line)!r} + chr(10))\nraise ValueError('no room')\n"
    (tmp_path / "halts.py").write_text(script)
    monkeypatch.setitem(speed.WORKERS, "transformers", "halts")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    result = bench(tiny_llama, "--quick", "--runtime", "transformers", "--json")
    assert result.exit_code == 0 and json.loads(result.stdout)[0]["error"] == "ValueError: no room"
