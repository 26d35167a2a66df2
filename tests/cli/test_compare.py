import json
import re
import shutil

import pytest
from click.testing import CliRunner

from compress.checkpoint.read import Checkpoint
from compress.cli import cli

SIZE = ("--samples", "4", "--seq-len", "32")


def compare(*arguments):
    return CliRunner().invoke(cli, ["compare", *map(str, arguments), *SIZE])


def test_compare_prints_one_row_per_checkpoint(tiny_llama, rounded, text):
    result = compare(tiny_llama, rounded, tiny_llama, "--eval-text", text)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert len(lines) == 4
    assert all(
        word in lines[0]
        for word in ("checkpoint", "format", "size", "bits per weight", "perplexity", "KL, nats", "top-1 agreement")
    )
    assert "float16" in lines[1] and "16.00" in lines[1] and "%" not in lines[1]
    assert "rounded" in lines[2] and "4.62" in lines[2] and "±" in lines[2]
    assert "0.0000 ± 0.0000" in lines[3] and "100.0 %" in lines[3]


def test_the_report_holds_the_same_rows_as_the_json(tiny_llama, rounded, text, tmp_path):
    page = tmp_path / "report.html"
    result = compare(tiny_llama, rounded, "--eval-text", text, "--html", page, "--json")
    assert result.exit_code == 0, result.output
    (script,) = re.findall(r'<script type="application/json" id="rows">(.*?)</script>', page.read_text())
    assert json.loads(script)["rows"] == json.loads(result.stdout)
    assert str(page) in result.stderr


def test_a_report_in_a_missing_folder_is_rejected_before_any_work(tiny_llama, rounded, text, tmp_path):
    result = compare(tiny_llama, rounded, "--eval-text", text, "--html", tmp_path / "no/report.html")
    assert result.exit_code == 1 and "does not exist; create it first" in result.stderr and "block" not in result.stderr


@pytest.fixture
def evaluated(tiny_llama, rounded, tmp_path):
    """What `eval --json` printed, kept where no answers are."""
    rows = [
        {
            "name": path.name,
            "digest": Checkpoint(path).digest,
            "role": role,
            "kind": "qa",
            "items": 4,
            "errors": 0,
            "empty": 0,
        }
        | {"suite": "custom", "runtime": "x", "score": 0.5}
        | {**dict.fromkeys(("retention", "retention_low", "retention_high"), kept)}
        for path, role, kept in ((tiny_llama, "reference", None), (rounded, "candidate", 80.0))
    ]
    file = tmp_path / "saved.json"
    file.write_text(json.dumps(rows))
    return file


def test_eval_rows_without_answers_give_a_report_without_answers(tiny_llama, rounded, text, tmp_path, evaluated):
    page = tmp_path / "report.html"
    result = compare(tiny_llama, rounded, "--eval-text", text, "--html", page, "--eval", evaluated)
    assert result.exit_code == 0 and page.is_file(), result.output


def test_missing_answers_fail_before_any_model_runs(tiny_llama, rounded, text, tmp_path, evaluated):
    asked = ("--html", tmp_path / "report.html", "--eval", evaluated, "--answers", 3)
    result = compare(tiny_llama, rounded, "--eval-text", text, *asked)
    assert (
        result.exit_code == 1
        and "missing; pass the folder of `qcompress eval --out` with --eval" in result.stderr
        and "reads" not in result.stderr
    )


def test_the_table_is_printed_even_if_the_report_fails(tiny_llama, rounded, text, tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError("no space")

    monkeypatch.setattr("compress.evaluate.report.job.write_report", fail)
    result = compare(tiny_llama, rounded, "--eval-text", text, "--html", tmp_path / "report.html")
    assert result.exit_code == 1 and "no space" in result.stderr and "perplexity" in result.stdout


def test_min_retention_works_without_a_report(tiny_llama, rounded, text, evaluated):
    limit = ("--eval-text", text, "--eval", evaluated, "--min-retention")
    assert compare(tiny_llama, rounded, *limit, 70).exit_code == 0
    result = compare(tiny_llama, rounded, *limit, 90)
    assert result.exit_code == 3 and "qa retains 80.0 %" in result.stderr
    assert compare(tiny_llama, rounded, *limit[:-1]).exit_code == 2


def test_compare_needs_a_candidate(tiny_llama):
    assert compare(tiny_llama).exit_code == 2


def test_another_tokenizer_is_one_error_line_with_both_names(tiny_llama, rounded, text, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(rounded, other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["model"]["merges"].clear()
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    result = compare(tiny_llama, other, "--eval-text", text)
    assert result.exit_code == 1 and str(other) in result.stderr and str(tiny_llama) in result.stderr
    assert sum(line.startswith("Error:") for line in result.stderr.splitlines()) == 1
