import json
import re
import shutil

from click.testing import CliRunner

from compress.cli import cli

SIZE = ("--windows", "4", "--seq-len", "32")


def compare(*arguments):
    return CliRunner().invoke(cli, ["compare", *map(str, arguments), *SIZE])


def test_one_row_per_checkpoint_with_the_figures_that_decide(tiny_llama, rounded, text):
    result = compare(tiny_llama, rounded, tiny_llama, "--text", text)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert len(lines) == 4
    assert all(word in lines[0] for word in ("name", "format", "MB", "bits/weight", "perplexity", "KL", "top-1"))
    assert "float16" in lines[1] and "16.00" in lines[1] and "%" not in lines[1]
    assert "rounded" in lines[2] and "4.62" in lines[2] and "±" in lines[2]
    assert "0.0000 ± 0.0000" in lines[3] and "100.0%" in lines[3]


def test_the_report_holds_the_same_rows_as_the_json(tiny_llama, rounded, text, tmp_path):
    page = tmp_path / "report.html"
    result = compare(tiny_llama, rounded, "--text", text, "--html", page, "--json")
    assert result.exit_code == 0, result.output
    (script,) = re.findall(r'<script type="application/json" id="rows">(.*?)</script>', page.read_text())
    assert json.loads(script)["rows"] == json.loads(result.stdout)
    assert str(page) in result.stderr


def test_a_report_with_no_place_to_go_is_refused_before_the_work(tiny_llama, rounded, text, tmp_path):
    result = compare(tiny_llama, rounded, "--text", text, "--html", tmp_path / "no/report.html")
    assert result.exit_code == 1 and "its directory does not exist" in result.stderr and "block" not in result.stderr


def test_a_candidate_is_needed(tiny_llama):
    assert compare(tiny_llama).exit_code == 2


def test_another_tokenizer_is_one_line_that_names_both(tiny_llama, rounded, text, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(rounded, other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["model"]["merges"].clear()
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    result = compare(tiny_llama, other, "--text", text)
    assert result.exit_code == 1 and str(other) in result.stderr and str(tiny_llama) in result.stderr
    assert sum(line.startswith("Error:") for line in result.stderr.splitlines()) == 1
