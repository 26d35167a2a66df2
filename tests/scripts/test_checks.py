"""The scripts that check figures: every command prints one value for a figure, and intervals cover the truth."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from compress.cli import cli

pytestmark = pytest.mark.slow  # runs whole jobs

SCRIPTS = Path(__file__).parents[2] / "scripts"


def script(name):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look up annotations
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def finished(tiny_llama, tmp_path_factory):
    """The folder of a finished recipe with two variants."""
    out = tmp_path_factory.mktemp("figures")
    recipe = {
        "teacher": str(tiny_llama),
        "out": str(out / "run"),
        "distill": {"blocks": 1, "steps": 4, "batch_size": 2, "seq_len": 32, "learning_rate": 3e-3, "alpha": 1.0},
        "quantize": [{"name": name, "method": name, "samples": 8, "seq_len": 32} for name in ("awq", "gptq")],
        "verify": {"samples": 6, "seq_len": 64},
    }
    (out / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    result = CliRunner().invoke(cli, ["run", str(out / "recipe.yaml")])
    assert result.exit_code == 0, result.output
    return out / "run"


def test_every_command_prints_the_same_value_for_a_figure(tiny_llama, finished):
    result = CliRunner().invoke(script("check_figures").main, [str(tiny_llama), str(finished), "--json"])
    assert result.exit_code == 0, result.output
    rows = {row["figure"]: row for row in json.loads(result.stdout)}
    assert len(rows) > 40 and all(row["same"] for row in rows.values())
    tokens = json.loads((finished / "report.json").read_text())["compare"][0]["tokens"]
    student = rows[f"perplexity of student on {tokens} tokens"]["values"]
    assert {"run", "distill", "compare", "compare --teacher"} <= student.keys()
    assert {"init-student", "run"} <= rows[f"perplexity of {tiny_llama.name} on {tokens} tokens"]["values"].keys()
    assert {"plan", "quantize --dry-run", "distill", "files of awq"} <= rows["bytes of student in 4 bits"][
        "values"
    ].keys()


def test_two_values_for_one_figure_are_a_failure(tiny_llama, finished, tmp_path):
    report = json.loads((finished / "report.json").read_text())
    report["compare"][1]["perplexity"] *= 1.001
    copy = tmp_path / "run"
    copy.mkdir()
    for path in finished.iterdir():
        (copy / path.name).symlink_to(path)
    (copy / "report.json").unlink()
    (copy / "report.json").write_text(json.dumps(report))
    result = CliRunner().invoke(script("check_figures").main, [str(tiny_llama), str(copy)])
    assert result.exit_code == 3
    assert "figures differ; the first: perplexity of awq" in result.output


def test_intervals_cover_the_truth_with_few_and_with_many_items():
    rows = script("check_intervals").coverage_rows(200)
    assert {(row["figure"], row["count"]) for row in rows} == {
        (figure, count) for figure in ("score", "change", "retention", "KL") for count in (2, 5, 20, 60)
    }
    assert min(row["coverage"] for row in rows) > 0.85  # 200 samples: two standard errors below 0.9


def test_the_committed_coverage_is_at_least_90_percent(request):
    stored = json.loads((request.config.rootpath / "docs/results/data/intervals.json").read_text())
    assert stored["runs"] >= 2000 and min(row["coverage"] for row in stored["rows"]) >= 0.9


def test_each_model_is_predicted_with_the_shares_of_the_others(tiny_llama, tiny_qwen2, tmp_path):
    check, out = script("plan_prediction"), tmp_path / "prediction.json"
    sizes = ["--samples", "4", "--seq-len", "32", "--eval-samples", "4", "--eval-seq-len", "32", "--limit", "1e9"]
    arguments = [str(tiny_llama), str(tiny_qwen2), "-o", str(out), "--work", str(tmp_path / "work"), *sizes]
    result = CliRunner().invoke(check.main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    fit = json.loads(out.read_text())
    assert len(fit["rows"]) == 2 * 4 * 4
    for row in fit["rows"]:
        others = [one for one in fit["rows"] if one["model"] != row["model"]]
        shares = check.fit_shares(others)
        expected = shares[row["method"]] * row["linears_kl"] + shares["rtn"] * row["tables_kl"]
        assert row["predicted_kl"] == pytest.approx(expected) and row["off_by"] >= 1
        assert row["tables_kl"] == 0 or row["layout"] == "head 4, embedding 8"
    again = CliRunner().invoke(check.main, [*arguments[:-1], "1.0"])
    assert again.exit_code == 3 and "a left-out model is predicted with a factor of" in again.output


def test_a_share_counts_every_model_the_same():
    check = script("plan_prediction")
    rows = [
        {"model": model, "method": method, "linears_kl": 2.0, "tables_kl": 0.0, "kl": 2.0 * share}
        for method in check.METHODS
        for model, share in (("a", 0.2), ("a", 0.2), ("a", 0.2), ("b", 0.8))
    ]
    assert check.fit_shares(rows) == pytest.approx(dict.fromkeys(check.METHODS, 0.4))
    assert check.error_factor([{"off_by": 1.1}, {"off_by": 1.1}]) == pytest.approx(1.21)
