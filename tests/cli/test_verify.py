import json
import shutil

import pytest
import torch
from click.testing import CliRunner

from calibration.corpus import source_digest
from compress.cli import cli
from compress.evaluate.drift.limits import HELP_DAMAGE
from compress.evaluate.history.store import read_verdicts

SIZE = ("--samples", "4", "--seq-len", "32")


def verify(*arguments):
    return CliRunner().invoke(cli, ["verify", *map(str, arguments), *SIZE])


def error_line(result):
    lines = [line for line in result.stderr.splitlines() if line.startswith("Error:")]
    assert len(lines) == 1 and "Traceback" not in result.output
    return lines[0]


def test_limits_that_hold_exit_with_0_and_print_the_row(tiny_llama, rounded, text):
    result = verify(tiny_llama, rounded, "--eval-text", text, "--max-kl", 10, "--max-perplexity-ratio", 10, "--json")
    assert result.exit_code == 0, result.output
    row = json.loads(result.stdout)
    assert 0 < row["kl"] < 10 and row["limits"] == {"max_kl": 10, "max_perplexity_ratio": 10} and row["passed"]
    assert row["tokens"] == 4 * 31 and row["text"] == "text.txt"


@pytest.mark.parametrize(
    ("option", "limit", "words"), [("--max-kl", 1e-6, "KL"), ("--max-perplexity-ratio", 0.5, "perplexity ratio")]
)
def test_a_broken_limit_exits_with_3_and_names_value_limit_and_remedy(tiny_llama, rounded, text, option, limit, words):
    result = verify(tiny_llama, rounded, "--eval-text", text, option, limit)
    assert result.exit_code == 3
    line = error_line(result)
    assert (
        f"{rounded.name}: {words} " in line
        and f"is above the limit {limit:g} ({option[2:].replace('-', '_')}); try another method" in line
    )
    assert "perplexity" in result.stdout  # the row is printed all the same


def test_a_checkpoint_passes_the_strictest_limits_against_itself(tiny_llama, text):
    result = verify(tiny_llama, tiny_llama, "--eval-text", text, "--max-kl", 0, "--max-perplexity-ratio", 1)
    assert result.exit_code == 0, result.output


def test_without_a_limit_nothing_is_verified(tiny_llama, rounded, text):
    result = verify(tiny_llama, rounded, "--eval-text", text)
    assert result.exit_code == 0 and "nothing was verified" in result.stderr


def test_a_text_without_a_scored_token_is_rejected(tiny_llama, rounded, tmp_path):
    turns = [{"role": "user", "content": "word " * 900}, {"role": "assistant", "content": "yes"}]
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": turns}))
    result = verify(tiny_llama, rounded, "--eval-text", tmp_path / "chat.jsonl")
    assert result.exit_code == 1 and "none of the 128 tokens is scored" in error_line(result)


def test_the_embedded_text_is_the_default(tiny_llama, rounded):
    result = CliRunner().invoke(
        cli, ["verify", str(tiny_llama), str(rounded), "--samples", "24", "--seq-len", "32", "--json"]
    )
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["text"] == "heldout"


def test_calibration_text_as_evaluation_text_exits_with_1(tiny_llama, rounded, text, tmp_path):
    seen = tmp_path / "seen"
    shutil.copytree(rounded, seen)
    record = json.loads((seen / "qcompress.json").read_text())
    record["calibration"] = {"sources": [{"name": "renamed.txt", "digest": source_digest(str(text))}]}
    (seen / "qcompress.json").write_text(json.dumps(record))
    result = verify(tiny_llama, seen, "--eval-text", text, "--max-kl", 10)
    assert result.exit_code == 1 and "was calibrated on text.txt" in error_line(result)


@pytest.mark.parametrize(
    ("content", "words"), [(None, "no such file"), ("", "empty"), ("too short", "tokens"), (b"\xff\xfe\xfa", "UTF-8")]
)
def test_unreadable_text_exits_with_1(tiny_llama, rounded, tmp_path, content, words):
    path = tmp_path / "bad.txt"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    result = verify(tiny_llama, rounded, "--eval-text", path, "--max-kl", 10)
    assert result.exit_code == 1 and "bad.txt" in error_line(result) and words in error_line(result)


def test_a_missing_candidate_exits_with_1(tiny_llama, text, tmp_path):
    result = verify(tiny_llama, tmp_path / "nowhere", "--eval-text", text, "--max-kl", 1)
    assert result.exit_code == 1 and "nowhere: no such directory" in error_line(result)


def test_a_cached_reference_does_not_run_again(tiny_llama, rounded, text, tmp_path):
    cache = ("--eval-text", text, "--reference-cache", tmp_path / "cache", "--json")
    first, second = verify(tiny_llama, rounded, *cache), verify(tiny_llama, tiny_llama, *cache)
    assert first.exit_code == second.exit_code == 0, second.output
    assert second.stderr.count("reads llama") == 3 and "reads llama  from" in second.stderr
    assert json.loads(first.stdout) == json.loads(verify(tiny_llama, rounded, "--eval-text", text, "--json").stdout)


def test_a_cache_of_other_windows_exits_with_1_and_names_them(tiny_llama, rounded, text, tmp_path):
    cache = ("--eval-text", text, "--reference-cache", tmp_path / "cache")
    verify(tiny_llama, rounded, *cache)
    other = ["verify", tiny_llama, rounded, *cache, "--samples", 3, "--seq-len", 32]
    result = CliRunner().invoke(cli, [*map(str, other)])
    assert result.exit_code == 1 and "another run, n_samples: 4 stored, 3 now" in error_line(result)


def test_locate_lists_every_block(tiny_llama, rounded, text):
    result = verify(tiny_llama, rounded, "--eval-text", text, "--locate")
    assert result.exit_code == 0 and "nothing was verified" not in result.stderr
    assert "model.layers.1" in result.stdout and "gain (1 is exact)" in result.stdout
    rows = json.loads(verify(tiny_llama, rounded, "--eval-text", text, "--locate", "--json").stdout)["blocks"]
    assert [row["block"] for row in rows] == [0, 1]


@pytest.fixture
def marked(monkeypatch):
    """Blocks are located, and the last stands out."""

    def locate(reference, candidate, windows, report, **settings):
        rows = [{"block": n, "name": f"model.layers.{n}", "gain": 1.12, "error": 0.15, "score": 9.0} for n in range(2)]
        return [row | {"outlier": row["block"] == 1} for row in rows]

    monkeypatch.setattr("compress.evaluate.drift.compare.locate_drift", locate)


def test_an_outlier_block_fails_verify_and_compare(tiny_llama, rounded, text, marked, tmp_path):
    reason = "block 1 (gain 1.120, error 0.1500) is an outlier"
    for command, page in (("verify", ()), ("compare", ("--html", tmp_path / "r.html"))):
        arguments = [
            command,
            tiny_llama,
            rounded,
            "--eval-text",
            text,
            *SIZE,
            "--locate",
            "--history",
            tmp_path / "h",
            *page,
        ]
        table, machine = (CliRunner().invoke(cli, [*map(str, arguments), *more]) for more in ((), ("--json",)))
        assert table.exit_code == machine.exit_code == 3, table.output
        assert error_line(table) == f"Error: {rounded.name}: {reason}; {HELP_DAMAGE}"
        rows = json.loads(machine.stdout)
        row = rows[-1] if isinstance(rows, list) else rows
        assert (row["passed"], row["reason"]) == (False, reason)
        assert "passed" in table.stdout and f"{rounded.name}: {reason}" in table.stderr
    assert f"✕ {reason}" in (tmp_path / "r.html").read_text()
    kept = [row for row in read_verdicts(tmp_path / "h") if row["role"] == "candidate"]
    assert [(row["passed"], row["reason"]) for row in kept] == 4 * [(False, reason)]


def test_the_default_device_is_the_cpu_without_a_gpu(tiny_llama, rounded, text):
    without, cpu = ([*options, "--json"] for options in ((), ("--device", "cpu")))
    results = [verify(tiny_llama, rounded, "--eval-text", text, *options) for options in (without, cpu)]
    assert results[1].exit_code == 0, results[1].output
    assert torch.cuda.is_available() or results[0].stdout == results[1].stdout


@pytest.mark.parametrize("command", ["verify", "compare"])
def test_device_cuda_without_a_gpu_is_one_error_line(tiny_llama, rounded, monkeypatch, command):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    result = CliRunner().invoke(cli, [command, str(tiny_llama), str(rounded), "--device", "cuda"])
    assert result.exit_code == 1 and "--device cuda: torch finds no GPU" in error_line(result)
